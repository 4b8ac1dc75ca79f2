"""RetinaNet R50 <- R101 by MGD, with the release's weights, schedule and inheritance.

The teacher is the zoo's R101 (3x), as by FGD; MGD's paper has an X101, 41.0 AP for the student.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods

from ..common.mgd import mgd
from .retinanet_R_50_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(mgd=mgd("retinanet"))

train.output_dir = "output/retinanet_R_50_FPN_2x_mgd"
