"""AutoAssign R101, a teacher: train it before the distilled recipes in this folder.

    python train_net.py --config-file configs/autoassign/autoassign_R_101_FPN_3x_ms.py --num-gpus 8

The schedule is from PGD's release. The release builds this teacher with the stride in the 1x1
convolutions, on weights that have it in the 3x3 convolutions. Here the stride is where the weights
have it.
"""

from ..common.coco_3x_ms import dataloader, lr_multiplier, optimizer, train
from ..common.models.autoassign import autoassign

model = autoassign(depth=101)

train.output_dir = "output/autoassign_R_101_FPN_3x_ms"
