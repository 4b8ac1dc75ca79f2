"""DDOD R101, a teacher: train it before ddod_R_50_FPN_1x_pgd.py.

    python train_net.py --config-file configs/ddod/ddod_R_101_FPN_3x_ms.py --num-gpus 8

The schedule is from PGD's release.
"""

from ..common.coco_3x_ms import dataloader, lr_multiplier, optimizer, train
from ..common.models.ddod import ddod

model = ddod(depth=101)

train.output_dir = "output/ddod_R_101_FPN_3x_ms"
