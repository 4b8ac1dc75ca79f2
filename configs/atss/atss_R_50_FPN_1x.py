"""ATSS R50 alone: the student of the configs beside it. Needs `d2kd.detectors`, no distillation.

The recipe is that of PGD's release, and so is the quality branch: it learns the IoU. The paper's
learns centerness (`model.quality=centerness`); upstream trains it at batch 16 with learning rate
0.01 and no clipping.
"""

from d2kd.detectors import ATSS

from ..common.coco_pgd import dataloader, lr_multiplier, optimizer, train
from ..common.dense import dense

model = dense(ATSS)
model.quality = "iou"

train.output_dir = "output/atss_R_50_FPN_1x"
