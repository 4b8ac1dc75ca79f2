"""GFL R50 alone at batch 32: the student for PGD and for RM + PFI. Needs `d2kd.detectors`.

The recipe is from PGD's release. Upstream trains at batch 16 with learning rate 0.01 and without
clipping: gfl_R_50_FPN_1x_bs16.py is closer to it.
"""

from ..common.coco_1x_bs32 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = gfl(depth=50)

train.output_dir = "output/gfl_R_50_FPN_1x"
