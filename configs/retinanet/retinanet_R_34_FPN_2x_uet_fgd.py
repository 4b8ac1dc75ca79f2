"""RetinaNet R34 <- R101 by FGD with UET. ../common/uet.py says how sure each part of it is.

UET's paper has students with R18 and R34 in an appendix; its settings and figures are not known.
"""

from ..common.uet import uncertainty
from .retinanet_R_34_FPN_2x_fgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.fgd.uncertainty = uncertainty()

train.output_dir = "output/retinanet_R_34_FPN_2x_uet_fgd"
