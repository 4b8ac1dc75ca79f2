"""GFL R50 alone at batch 16: the student of the configs beside it whose names begin alike.

The published baseline of FGD, UET, PKD and LD, 40.2 AP (40.1 in LD's README). It is the student of
gfl_R_50_FPN_1x.py, which trains at batch 32 with twice the learning rate.
"""

from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from .gfl_R_50_FPN_1x import model

train.output_dir = "output/gfl_R_50_FPN_1x_bs16"
