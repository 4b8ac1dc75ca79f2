"""What ATSS, GFL, DDOD and AutoAssign share: ResNet-50 of torchvision, FPN with P3 to P7, two
towers of four convolutions with GroupNorm.

As in PGD's release: stride in the 3x3 convolutions, BatchNorm frozen, stem and first stage frozen.
Not as there: the laterals and outputs of FPN start from Detectron2's (Caffe2's) Xavier weights,
which the release has for AutoAssign only.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from d2kd.detectors import PointHead, TopBlock

_constants = model_zoo.get_config("common/data/constants.py").constants


def torchvision_pixels(model):
    """Normalise as torchvision's ImageNet weights need it; the images are RGB."""
    model.pixel_mean = _constants.imagenet_rgb256_mean
    model.pixel_std = _constants.imagenet_rgb256_std
    model.backbone.bottom_up.stages.stride_in_1x1 = False
    model.backbone.bottom_up.freeze_at = 2


def dense(detector, head=PointHead, **fields):
    """A node of `detector` with a `head`; `fields` are the head's."""
    backbone = model_zoo.get_config("common/models/retinanet.py").model.backbone
    backbone.top_block = L(TopBlock)(in_channels=256, out_channels="${..out_channels}")
    head = L(head)(
        input_shape=[ShapeSpec(channels=256)] * 5,
        num_classes="${..num_classes}",
        conv_dims=[256] * 4,
        **fields,
    )
    model = L(detector)(backbone=backbone, head=head, num_classes=80, input_format="RGB")
    torchvision_pixels(model)
    return model
