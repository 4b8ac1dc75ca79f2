"""ATSS R50 alone: the student of the distilled recipes in this folder. Needs `d2kd.detectors`.

The recipe and the quality branch, which learns the IoU, are from PGD's release. In the paper, the
branch learns centerness (`model.quality=centerness`). Upstream trains at batch 16 with learning
rate 0.01 and without clipping.
"""

from ..common.coco_1x_bs32 import dataloader, lr_multiplier, optimizer, train
from ..common.models.atss import atss

model = atss(depth=50)

train.output_dir = "output/atss_R_50_FPN_1x"
