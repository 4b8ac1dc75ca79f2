"""Mask R-CNN R50 alone: the student of the other recipes in this folder. Needs no d2kd."""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.mask_rcnn import mask_rcnn

model = mask_rcnn()

dataloader.train.mapper.use_instance_mask = True
train.output_dir = "output/mask_rcnn_R_50_FPN_2x"
