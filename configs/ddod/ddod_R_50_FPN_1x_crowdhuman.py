"""DDOD R50 on CrowdHuman, alone: the student of ddod_R_50_FPN_1x_crowdhuman_pgd.py.

The recipe is from PGD's release: one class, full bodies. datasets/README.md says where the data
goes.
"""

from ..common.crowdhuman_1x import dataloader, lr_multiplier, optimizer, train
from ..common.models.ddod import ddod_crowdhuman

model = ddod_crowdhuman(depth=50)

train.output_dir = "output/ddod_R_50_FPN_1x_crowdhuman"
