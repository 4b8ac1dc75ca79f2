"""RetinaNet R34 <- R101 by FGD, with the released weights for R50.

No setting is published. The student inherits whatever fits: not the laterals of FPN, nor P6.
"""

from .retinanet_R_34_FPN_2x import dataloader, lr_multiplier, optimizer, train
from .retinanet_R_34_FPN_2x import model as _student
from .retinanet_R_50_FPN_2x_fgd import model

model.student = _student

train.output_dir = "output/retinanet_R_34_FPN_2x_fgd"
