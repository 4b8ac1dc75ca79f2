"""GFL R50 alone: the student of the configs beside it. Needs `d2kd.detectors`, no distillation.

The recipe is that of PGD's release; upstream trains at batch 16 with learning rate 0.01 and no
clipping.
"""

from d2kd.detectors import GFL

from ..common.coco_pgd import dataloader, lr_multiplier, optimizer, train
from ..common.dense import dense

model = dense(GFL, box_channels=4 * 17, quality=False)
model.reg_max = 16

train.output_dir = "output/gfl_R_50_FPN_1x"
