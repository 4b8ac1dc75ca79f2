"""RetinaNet R50 alone: the student of the configs beside it. Detectron2 only, no d2kd."""

from detectron2 import model_zoo

from ..common.coco import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model

optimizer.lr = 0.01
train.output_dir = "output/retinanet_R_50_FPN_2x"
