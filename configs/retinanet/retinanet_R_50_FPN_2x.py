"""RetinaNet R50 alone: the student of the recipes in this folder that name R50. Needs no d2kd."""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.retinanet import retinanet

model = retinanet(depth=50)

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x"
