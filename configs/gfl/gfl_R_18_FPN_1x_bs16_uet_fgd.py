"""GFL R18 <- R101 by FGD with UET. ../common/uet.py says how sure each part of it is.

UET's paper has students with R18 and R34 in an appendix; its settings and figures are not known.
"""

from ..common.uet import uncertainty
from .gfl_R_18_FPN_1x_bs16_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.fgd.uncertainty = uncertainty()

train.output_dir = "output/gfl_R_18_FPN_1x_bs16_uet_fgd"
