"""RetinaNet with MobileNetV2 alone: the student of the config beside it.

The recipe is that of R50, for want of a published one. The maps have 32, 96 and 1280 channels, as
those of PGD's students with MobileNetV2. All convolutions train; batch norms are frozen, unlike
PGD's.
"""

from ..common.coco import lr_multiplier
from ..common.small import library
from .retinanet_R_50_FPN_2x import dataloader, model, optimizer, train

library(model, "mobilenet_v2", norm="FrozenBN")
model.backbone.top_block.in_channels = 1280  # P6 is made from res5

dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = ""
train.output_dir = "output/retinanet_mobilenet_v2_FPN_2x"
