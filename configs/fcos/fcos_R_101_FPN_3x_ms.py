"""FCOS R101, the teacher: train it before the distilled configs.

    python train_net.py --config-file configs/fcos/fcos_R_101_FPN_3x_ms.py --num-gpus 8

The schedule is that of PGD's release. ../common/coco_pgd_3x_ms.py says where R-101.pkl comes from.

The release builds this teacher with the stride in the 1x1 convolutions, on weights that have it in
the 3x3; here it is where the weights have it.
"""

from ..common.coco_pgd_3x_ms import dataloader, lr_multiplier, optimizer, train
from .fcos_R_50_FPN_1x import model

model.backbone.bottom_up.stages.depth = 101

train.output_dir = "output/fcos_R_101_FPN_3x_ms"
