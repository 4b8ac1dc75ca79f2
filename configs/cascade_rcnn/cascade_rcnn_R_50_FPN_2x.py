"""Cascade R-CNN R50 alone: the student of the distilled recipes in this folder. Needs no d2kd."""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.cascade_rcnn import cascade_rcnn

model = cascade_rcnn(depth=50)

train.output_dir = "output/cascade_rcnn_R_50_FPN_2x"
