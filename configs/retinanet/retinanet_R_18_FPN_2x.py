"""RetinaNet R18 alone: the student of the recipes in this folder that name R18.

No recipe is published for it. This one is the recipe of R50.
"""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = retinanet(depth=18)

dataloader.train.mapper.image_format = "RGB"
optimizer.lr = 0.01
# R-18.pkl: run Detectron2's tools/convert-torchvision-to-d2.py on resnet18-f37072fd.pth from
# download.pytorch.org/models; it is not hosted for Detectron2.
train.init_checkpoint = "R-18.pkl"
train.output_dir = "output/retinanet_R_18_FPN_2x"
