"""FCOS R50 alone: the student of fcos_R_50_FPN_1x_pgd.py. Needs no d2kd.

The schedule is from PGD's release, but the detector is Detectron2's FCOS. common/models/fcos.py
says how it differs from the release's.
"""

from ..common.coco_1x_bs32 import dataloader, lr_multiplier, optimizer, train
from ..common.models.fcos import fcos_torchvision

model = fcos_torchvision(depth=50)

train.output_dir = "output/fcos_R_50_FPN_1x"
