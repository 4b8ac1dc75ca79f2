"""Faster R-CNN R50 <- R101 by MGD, with the release's weights and schedule, without inheritance.

The release's teacher is a Cascade Mask R-CNN X101 with deformable convolutions, 42.1 AP for the
student; here it is the zoo's R101 (3x). faster_rcnn_R_50_FPN_2x_cascade_fgd.py names a Cascade.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods

from ..common.mgd import mgd
from .faster_rcnn_R_50_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(mgd=mgd("faster_rcnn"))
model.inherit = False

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_mgd"
