"""Detectron2's Cascade R-CNN on a ResNet, for Caffe's ImageNet weights, which take BGR images."""

from detectron2 import model_zoo


def cascade_rcnn(depth):
    """Detectron2's config of Cascade Mask R-CNN without its mask branch. The depth is 50 or 101."""
    model = model_zoo.get_config("common/models/cascade_rcnn.py").model
    model.backbone.bottom_up.stages.depth = depth
    model.backbone.bottom_up.freeze_at = 2
    for field in ("mask_in_features", "mask_pooler", "mask_head"):
        del model.roi_heads[field]
    return model
