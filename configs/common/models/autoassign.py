"""AutoAssign on a ResNet of torchvision, which takes RGB images. It needs `d2kd.detectors`.

The network is as in PGD's release: stride in the 3x3 convolutions, BatchNorm frozen, stem and first
stage frozen, two towers of four convolutions with GroupNorm. P6 is made from C5, and there is
a ReLU before P7. The other detectors make P6 from P5, without a ReLU.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from d2kd.detectors import AutoAssign, PointHead


def autoassign(depth):
    """The depth is 50 or 101."""
    backbone = model_zoo.get_config("common/models/retinanet.py").model.backbone
    backbone.bottom_up.stages.update(depth=depth, stride_in_1x1=False)
    backbone.bottom_up.freeze_at = 2
    backbone.top_block = L(LastLevelP6P7)(
        in_channels=2048, out_channels="${..out_channels}", in_feature="res5"
    )
    return L(AutoAssign)(
        backbone=backbone,
        head=L(PointHead)(
            input_shape=[ShapeSpec(channels=256)] * 5,
            num_classes="${..num_classes}",
            conv_dims=[256] * 4,
            conv_bias=True,
            prior_prob=0.02,
            box_bias=4.0,
        ),
        num_classes=80,
        input_format="RGB",
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
