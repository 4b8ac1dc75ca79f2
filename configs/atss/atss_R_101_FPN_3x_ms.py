"""ATSS R101, a teacher: train it before the distilled recipes in this folder.

    python train_net.py --config-file configs/atss/atss_R_101_FPN_3x_ms.py --num-gpus 8

The schedule is from PGD's release.
"""

from ..common.coco_3x_ms import dataloader, lr_multiplier, optimizer, train
from ..common.models.atss import atss

model = atss(depth=101)

train.output_dir = "output/atss_R_101_FPN_3x_ms"
