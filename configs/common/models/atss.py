"""ATSS on a ResNet of torchvision, which takes RGB images. It needs `d2kd.detectors`.

The network is as in PGD's release: stride in the 3x3 convolutions, BatchNorm frozen, stem and first
stage frozen, P6 and P7 from P5, two towers of four convolutions with GroupNorm. Unlike there, the
neck starts from Detectron2's Xavier weights, which the release has for AutoAssign only.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from d2kd.detectors import ATSS, PointHead, TopBlock


def atss(depth):
    """The depth is 50 or 101. The quality branch learns the IoU, as in PGD's release; in ATSS's
    paper it learns centerness (`model.quality=centerness`)."""
    backbone = model_zoo.get_config("common/models/retinanet.py").model.backbone
    backbone.bottom_up.stages.update(depth=depth, stride_in_1x1=False)
    backbone.bottom_up.freeze_at = 2
    backbone.top_block = L(TopBlock)(in_channels=256, out_channels="${..out_channels}")
    return L(ATSS)(
        backbone=backbone,
        head=L(PointHead)(
            input_shape=[ShapeSpec(channels=256)] * 5,
            num_classes="${..num_classes}",
            conv_dims=[256] * 4,
        ),
        num_classes=80,
        input_format="RGB",
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
        quality="iou",
    )
