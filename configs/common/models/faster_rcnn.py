"""Detectron2's Faster R-CNN on ResNet-50, for Caffe's ImageNet weights, which take BGR images."""

from detectron2 import model_zoo


def faster_rcnn():
    """Detectron2's config of Mask R-CNN without its mask branch."""
    model = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py").model
    for field in ("mask_in_features", "mask_pooler", "mask_head"):
        del model.roi_heads[field]
    return model
