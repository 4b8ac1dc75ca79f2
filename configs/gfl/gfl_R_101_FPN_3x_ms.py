"""GFL R101, a teacher: train it before the PGD and RM + PFI recipes in this folder.

    python train_net.py --config-file configs/gfl/gfl_R_101_FPN_3x_ms.py --num-gpus 8

The schedule is from PGD's release.
"""

from ..common.coco_3x_ms import dataloader, lr_multiplier, optimizer, train
from ..common.models.gfl import gfl

model = gfl(depth=101)

train.output_dir = "output/gfl_R_101_FPN_3x_ms"
