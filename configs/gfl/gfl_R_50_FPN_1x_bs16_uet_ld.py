"""GFL R50 <- R101 by LD with UET: +0.2 AP over LD in the paper.

../common/uet.py says how sure each part of it is. Where the paper has its dropout in LD is not
known; here it is on the teacher's logits of box sides. Their sum is twice as large, as at half the
temperature: `model.methods.ld.uncertainty.combine=mean` keeps the teacher's scale.
"""

from ..common.uet import uncertainty
from .gfl_R_50_FPN_1x_bs16_ld import dataloader, lr_multiplier, model, optimizer, train

model.methods.ld.uncertainty = uncertainty()

train.output_dir = "output/gfl_R_50_FPN_1x_bs16_uet_ld"
