"""Detectron2's Mask R-CNN on ResNet-50, for Caffe's ImageNet weights, which take BGR images."""

from detectron2 import model_zoo


def mask_rcnn():
    return model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
