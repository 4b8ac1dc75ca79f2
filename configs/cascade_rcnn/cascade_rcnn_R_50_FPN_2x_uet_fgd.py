"""Cascade R-CNN R50 <- R101 by FGD with UET. ../common/uet.py says how sure each part of it is.

No setting is published for a Cascade R-CNN student.
"""

from ..common.uet import uncertainty
from .cascade_rcnn_R_50_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.fgd.uncertainty = uncertainty()

train.output_dir = "output/cascade_rcnn_R_50_FPN_2x_uet_fgd"
