"""Faster R-CNN R50 <- R101 by PKD, with the weight, levels and schedule of mmrazor.

mmrazor's R101 is a 2x model, 40.3 AP for the student; the zoo's is 3x. Nothing is inherited, as
there.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods

from ..common.pkd import pkd
from .faster_rcnn_R_50_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(pkd=pkd("faster_rcnn"))
model.inherit = False

train.output_dir = "output/faster_rcnn_R_50_FPN_2x_pkd"
