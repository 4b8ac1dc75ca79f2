"""DDOD R50 alone: the student of the configs beside it. Needs `d2kd.detectors`, no distillation.

The recipe and the label assignment are those of PGD's release; ddod_R_50_FPN_1x_original.py has
those of DDOD's own authors.
"""

from d2kd.detectors import DDOD, DDODHead

from ..common.coco_pgd import dataloader, lr_multiplier, optimizer, train
from ..common.dense import dense

model = dense(DDOD, DDODHead)
model.assigner = "topk"

train.output_dir = "output/ddod_R_50_FPN_1x"
