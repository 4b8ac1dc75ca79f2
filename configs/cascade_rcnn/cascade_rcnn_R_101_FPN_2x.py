"""Cascade R-CNN R101, the teacher: train it before the distilled configs.

    python train_net.py --config-file configs/cascade_rcnn/cascade_rcnn_R_101_FPN_2x.py --num-gpus 8

Detectron2's zoo has none.
"""

from .cascade_rcnn_R_50_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/cascade_rcnn_R_101_FPN_2x"
