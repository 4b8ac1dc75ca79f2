"""GFL R101 at batch 16, a teacher: train it before the recipes that name bs16.

    python train_net.py --config-file configs/gfl/gfl_R_101_FPN_2x_ms.py --num-gpus 8

The published teacher of FGD, UET, PKD and LD is mmdetection's, 24 epochs on many sizes, 44.9 AP
(44.7 in mmrazor's README).
"""

from ..common.coco_2x_ms import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = gfl(depth=101)

train.output_dir = "output/gfl_R_101_FPN_2x_ms"
