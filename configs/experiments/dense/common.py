"""Six dense detectors on the demo's data: functions that give a student, teacher or distiller."""

import os

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from d2kd import Distiller, Teacher
from d2kd.detectors import ATSS, DDOD, GFL, AutoAssign, DDODHead, PointHead
from d2kd.methods import Methods

from ...demo.common import dataloader, fcos, lr_multiplier, optimizer, pyramid, retinanet, train

_here = os.path.dirname(__file__)

# On COCO, a bottom-up network starts from ImageNet weights. Here it starts from the demo's student,
# which was trained alone for 1,500 steps. Neck and head start from random weights, or from the
# weights of the teacher.
train.init_checkpoint = os.path.join(_here, "backbone.pth")
train.max_iter = 600
train.eval_period = 0
train.checkpointer.period = 300
dataloader.train.total_batch_size = 4

_point = dict(
    num_classes=10,
    head_in_features=["p2", "p3", "p4"],
    pixel_mean=[110.0, 110.0, 110.0],
    pixel_std=[60.0, 60.0, 60.0],
    input_format="RGB",
)


def _head(kind, neck, convs, **fields):
    return L(kind)(
        input_shape=[ShapeSpec(channels=neck)] * 3,
        num_classes="${..num_classes}",
        conv_dims=[neck] * convs,
        norm="",
        conv_bias=True,
        **fields,
    )


def _anchors():
    return L(DefaultAnchorGenerator)(
        sizes=[[16], [28], [44]], aspect_ratios=[1.0], strides=[4, 8, 16], offset=0.0
    )


def _atss(blocks, width, neck, convs):
    return L(ATSS)(
        backbone=pyramid(blocks, width, neck),
        head=_head(PointHead, neck, convs),
        anchor_generator=_anchors(),
        **_point,
    )


def _gfl(blocks, width, neck, convs):
    return L(GFL)(
        backbone=pyramid(blocks, width, neck),
        head=_head(PointHead, neck, convs, box_channels=68, quality=False),
        anchor_generator=_anchors(),
        **_point,
    )


def _ddod(blocks, width, neck, convs):
    return L(DDOD)(
        backbone=pyramid(blocks, width, neck),
        head=_head(DDODHead, neck, convs),
        anchor_generator=_anchors(),
        **_point,
    )


def _autoassign(blocks, width, neck, convs):
    return L(AutoAssign)(
        backbone=pyramid(blocks, width, neck),
        head=_head(PointHead, neck, convs, prior_prob=0.02, box_bias=4.0),
        **_point,
    )


_DETECTORS = dict(
    retinanet=retinanet, fcos=fcos, atss=_atss, gfl=_gfl, ddod=_ddod, autoassign=_autoassign
)


def student(detector):
    """The small detector: three blocks, width 16."""
    return _DETECTORS[detector](blocks=[1, 1, 1], width=16, neck=48, convs=2)


def teacher(detector):
    """The large detector: six blocks, width 48."""
    return _DETECTORS[detector](blocks=[2, 2, 2], width=48, neck=48, convs=2)


def distilled(detector, inherit=True, **methods):
    """The student with its teacher. The demo ships RetinaNet's teacher; `<detector>_teacher.py`
    trains the others.

    Args:
        inherit: see `Distiller`.
        methods: nodes of the methods, by name.
    """
    if detector == "retinanet":
        weights = os.path.join(_here, "../../demo/teacher.pth")
    else:
        weights = f"output/demo/dense/{detector}_teacher/model_final.pth"
    return L(Distiller)(
        student=student(detector),
        teacher=L(Teacher)(model=teacher(detector), weights=weights),
        methods=L(Methods)(**methods),
        inherit=inherit,
        input_format="RGB",
    )
