"""GFL R50 <- R101 by CWD on the neck's maps. Nothing is inherited.

No figure is published for this: mmrazor's 41.9 AP is of class scores, see ../common/cwd.py.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import Methods

from ..common.cwd import cwd
from .gfl_R_50_FPN_1x_bs16_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods = L(Methods)(cwd=cwd("gfl"))
model.inherit = False

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_cwd"
