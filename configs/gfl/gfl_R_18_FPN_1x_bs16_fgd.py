"""GFL R18 <- R101 by FGD, with the released weights for R50.

No setting is published. The student inherits whatever fits: not the laterals of FPN.
"""

from .gfl_R_18_FPN_1x_bs16 import dataloader, lr_multiplier, optimizer, train
from .gfl_R_18_FPN_1x_bs16 import model as _student
from .gfl_R_50_FPN_1x_bs16_fgd import model

model.student = _student

train.output_dir = "output/gfl_R_18_FPN_1x_bs16_fgd"
