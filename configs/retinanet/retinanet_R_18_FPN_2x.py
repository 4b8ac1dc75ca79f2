"""RetinaNet R18 alone: the student of the configs beside it whose names begin alike.

The recipe is that of R50, for want of a published one. ../common/small.py says where R-18.pkl comes
from.
"""

from ..common.coco import lr_multiplier
from ..common.small import resnet
from .retinanet_R_50_FPN_2x import dataloader, model, optimizer, train

resnet(model, depth=18)
model.backbone.top_block.in_channels = 512  # P6 is made from res5

dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = "R-18.pkl"
train.output_dir = "output/retinanet_R_18_FPN_2x"
