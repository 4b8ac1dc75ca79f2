"""FCOS R50 alone: the student of the configs beside it. Detectron2 only, no d2kd.

FGD's release trains FCOS with centre sampling, boxes in units of the stride and GIoU; so does
Detectron2. Detectron2's differs from mmdetection's in this: GIoU is not weighted by centerness,
losses are divided by a running mean of the positives, scores are sqrt(p * centerness), above 0.2,
and NMS is at 0.6. Short sides are 640/800 in the release, six sizes from 640 to 800 here.
"""

from detectron2 import model_zoo

from ..common.coco import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model

optimizer.lr = 0.01
train.output_dir = "output/fcos_R_50_FPN_2x"
