"""Faster R-CNN R50 <- R101 by CWD on the neck's maps, with mmrazor's weight and temperature.

The schedule is that of the student beside it (mmrazor's is 1x, as we recall), the teacher the
zoo's (3x). Nothing is inherited.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods

from ..common.cwd import cwd
from .faster_rcnn_R_50_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(cwd=cwd("faster_rcnn"))
model.inherit = False

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_cwd"
