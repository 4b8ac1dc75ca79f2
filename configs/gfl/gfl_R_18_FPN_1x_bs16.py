"""GFL R18 alone at batch 16: the student of the recipes in this folder that name R18.

No recipe is published for it. This one is the recipe of R50.
"""

from ..common.coco_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = gfl(depth=18)

# R-18.pkl: run Detectron2's tools/convert-torchvision-to-d2.py on resnet18-f37072fd.pth from
# download.pytorch.org/models; it is not hosted for Detectron2.
train.init_checkpoint = "R-18.pkl"
train.output_dir = "output/gfl_R_18_FPN_1x_bs16"
