"""FCOS R101, a teacher: train it before the distilled recipes with 2x in this folder.

    python train_net.py --config-file configs/fcos/fcos_R_101_FPN_2x.py --num-gpus 8

Detectron2's model zoo has none.
"""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.fcos import fcos

model = fcos(depth=101)

optimizer.lr = 0.01
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/fcos_R_101_FPN_2x"
