"""Faster R-CNN R50 alone: the student of the other recipes in this folder. Needs no d2kd."""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.faster_rcnn import faster_rcnn

model = faster_rcnn()

train.output_dir = "output/faster_rcnn_R_50_FPN_2x"
