"""GFL R50 alone at batch 16: the student of the recipes that name R50 and bs16.

It is the published baseline of FGD, UET, PKD and LD, 40.2 AP (40.1 in LD's README).
"""

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = gfl(depth=50)

train.output_dir = "output/gfl_R_50_FPN_1x_bs16"
