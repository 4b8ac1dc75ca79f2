"""GFL R101, the teacher: train it before the distilled configs.

    python train_net.py --config-file configs/gfl/gfl_R_101_FPN_3x_ms.py --num-gpus 8

The schedule is that of PGD's release. ../common/coco_pgd_3x_ms.py says where R-101.pkl comes from.
"""

from ..common.coco_pgd_3x_ms import dataloader, lr_multiplier, optimizer, train
from .gfl_R_50_FPN_1x import model

model.backbone.bottom_up.stages.depth = 101

train.output_dir = "output/gfl_R_101_FPN_3x_ms"
