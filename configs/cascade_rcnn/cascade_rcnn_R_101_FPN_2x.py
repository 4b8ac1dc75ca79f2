"""Cascade R-CNN R101, a teacher: train it before the distilled recipes in this folder.

    python train_net.py --config-file configs/cascade_rcnn/cascade_rcnn_R_101_FPN_2x.py --num-gpus 8

Detectron2's model zoo has none.
"""

from ..common.coco_2x import dataloader, lr_multiplier, optimizer, train
from ..common.models.cascade_rcnn import cascade_rcnn

model = cascade_rcnn(depth=101)

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/cascade_rcnn_R_101_FPN_2x"
