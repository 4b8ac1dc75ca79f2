"""DDOD R50 alone: the student of ddod_R_50_FPN_1x_pgd.py. Needs `d2kd.detectors`.

Recipe and label assignment are from PGD's release. ddod_R_50_FPN_1x_original.py has the recipe and
the assignment of DDOD's own authors.
"""

from ..common.coco_1x_bs32 import dataloader, lr_multiplier, optimizer, train
from ..common.models.ddod import ddod

model = ddod(depth=50)

train.output_dir = "output/ddod_R_50_FPN_1x"
