"""GFL R50 <- R101 by FGD with UET: the paper's main result, 44.1 AP.

../common/uet.py says how sure each part of it is. Whether the paper's student inherits neck and
head is not known; FGD's does, and so does this one. `model.inherit=False` is the other.
"""

from ..common.uet import uncertainty
from .gfl_R_50_FPN_1x_bs16_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.fgd.uncertainty = uncertainty()

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_uet_fgd"
