"""GFL R18 alone: the student of the configs beside it whose names begin alike.

The recipe is that of R50. ../common/small.py says where R-18.pkl comes from.
"""

from ..common.small import resnet
from .gfl_R_50_FPN_1x_bs16 import dataloader, lr_multiplier, model, optimizer, train

resnet(model, depth=18)

train.init_checkpoint = "R-18.pkl"
train.output_dir = "output/gfl_R_18_FPN_1x_bs16"
