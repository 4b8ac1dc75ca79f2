"""RetinaNet R50 <- R101 by MGD with UET. ../common/uet.py says how sure each part of it is.

Whether the paper combines the two is not known. The target is about twice as large, and the loss
about four times at first: `model.methods.mgd.uncertainty.combine=mean` keeps the teacher's scale.
"""

from ..common.uet import uncertainty
from .retinanet_R_50_FPN_2x_mgd import dataloader, lr_multiplier, model, optimizer, train

model.methods.mgd.uncertainty = uncertainty()

train.output_dir = "output/retinanet_R_50_FPN_2x_uet_mgd"
