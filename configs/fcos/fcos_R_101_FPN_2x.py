"""FCOS R101, the teacher: train it before the distilled configs.

    python train_net.py --config-file configs/fcos/fcos_R_101_FPN_2x.py --num-gpus 8

Detectron2's zoo has none.
"""

from .fcos_R_50_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/fcos_R_101_FPN_2x"
