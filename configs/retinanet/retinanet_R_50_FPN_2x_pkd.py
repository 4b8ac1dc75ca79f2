"""RetinaNet R50 <- R101 by PKD, with the weight, levels and schedule of mmrazor.

mmrazor's teacher is an X101, 40.8 AP for the student; here it is the zoo's R101 (3x), as by FGD.
Nothing is inherited, as there.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods

from ..common.pkd import pkd
from .retinanet_R_50_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(pkd=pkd("retinanet"))
model.inherit = False

train.output_dir = "output/retinanet_R_50_FPN_2x_pkd"
