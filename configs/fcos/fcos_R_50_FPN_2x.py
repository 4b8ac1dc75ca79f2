"""FCOS R50 alone: the student of the recipes in this folder that name R50 and 2x. Needs no d2kd.

The schedule is FGD's, the detector Detectron2's; common/models/fcos.py says how it differs from the
release's. Short sides are 640 or 800 pixels in the release. Here they are six sizes from 640 to
800.
"""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.fcos import fcos

model = fcos(depth=50)

optimizer.lr = 0.01
train.output_dir = "output/fcos_R_50_FPN_2x"
