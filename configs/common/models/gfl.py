"""GFL on a ResNet of torchvision, which takes RGB images. It needs `d2kd.detectors`.

The network is as in PGD's release: stride in the 3x3 convolutions, BatchNorm frozen, stem and first
stage frozen, P6 and P7 from P5, two towers of four convolutions with GroupNorm. Unlike there, the
neck starts from Detectron2's Xavier weights, which the release has for AutoAssign only.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from d2kd.detectors import GFL, PointHead, TopBlock


def gfl(depth):
    """The depth is 18, 50 or 101. A side of a box is a distribution over 17 distances."""
    backbone = model_zoo.get_config("common/models/retinanet.py").model.backbone
    backbone.bottom_up.stages.update(depth=depth, stride_in_1x1=False)
    if depth < 50:
        del backbone.bottom_up.stages.stride_in_1x1  # basic blocks have no 1x1 convolutions
    backbone.bottom_up.freeze_at = 2
    backbone.top_block = L(TopBlock)(in_channels=256, out_channels="${..out_channels}")
    return L(GFL)(
        backbone=backbone,
        head=L(PointHead)(
            input_shape=[ShapeSpec(channels=256)] * 5,
            num_classes="${..num_classes}",
            conv_dims=[256] * 4,
            box_channels=4 * 17,
            quality=False,
        ),
        num_classes=80,
        input_format="RGB",
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
        reg_max=16,
    )
