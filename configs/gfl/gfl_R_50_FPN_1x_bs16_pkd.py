"""GFL R50 <- R101 by PKD at CrossKD's weight; ../common/pkd.py says what is known of it.

43.3 AP by PKD alone in CrossKD's paper (recalled). Nothing is inherited.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods

from ..common.pkd import pkd
from .gfl_R_50_FPN_1x_bs16_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(pkd=pkd("gfl"))
model.inherit = False

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_pkd"
