"""Detectron2's FCOS on a ResNet. It needs Detectron2 only.

FGD and PGD published results with other versions of FCOS, so that the AP here may differ:

- FGD uses mmdetection's. It has center sampling, boxes in units of the stride and GIoU, too, but it
  weights GIoU by centerness. In Detectron2's, losses are divided by a running mean of the number of
  positives, scores are sqrt(p * centerness), above 0.2, and NMS is at 0.6.
- PGD's has learned scales of the levels, an IoU loss weighted by centerness, scores p * centerness,
  thresholds on p, and NMS at 0.5.
"""

from detectron2 import model_zoo


def fcos(depth):
    """For Caffe's ImageNet weights, which take BGR images. The depth is 50 or 101."""
    model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
    model.backbone.bottom_up.stages.depth = depth
    return model


def fcos_torchvision(depth):
    """For torchvision's ImageNet weights: RGB images, and the stride in the 3x3 convolutions."""
    model = fcos(depth)
    model.pixel_mean = [123.675, 116.28, 103.53]
    model.pixel_std = [58.395, 57.12, 57.375]
    model.backbone.bottom_up.stages.stride_in_1x1 = False
    return model
