"""Readers get `Knowledge` out of a detector: one function for each kind of meta-architecture."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from detectron2.modeling.meta_arch import FCOS, GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator.rpn import RPN
from torch import nn

from ..detectors.base import PointDetector
from ..detectors.ddod import DDOD
from .anchors import AnchorReader, GuidedReader, PointReader, check_same_anchors
from .base import Reader, Tap
from .classes import num_classes
from .necks import NeckReader, read_neck

__all__ = [
    "AnchorReader",
    "GuidedReader",
    "NeckReader",
    "PointReader",
    "Reader",
    "Tap",
    "check_same_anchors",
    "get_reader",
    "num_classes",
]


@singledispatch
def get_reader(detector: nn.Module) -> Reader:
    """Return the `Reader` of a detector. Register a function here to support a new architecture.

    A detector of another kind is read by its `backbone` and `neck` alone (`NeckReader`), which is
    enough for all methods on features.

    Raises:
        TypeError: no function is registered for this type or one of its base classes, and it has
            no backbone of Detectron2's interface.
    """
    if reader := read_neck(detector):
        return reader
    known = ", ".join(kind.__name__ for kind in get_reader.registry if kind is not object)
    raise TypeError(
        f"d2kd cannot read this detector: expected one of {known} or a subclass, or a detector "
        f"whose `backbone` has Detectron2's output_shape(), found a {type(detector).__name__}. "
        f"Write a function that returns a d2kd.readers.Reader for it and decorate the function "
        f"with @d2kd.readers.get_reader.register."
    )


@get_reader.register
def _(detector: DenseDetector) -> Reader:
    return Reader(**_dense(detector))


@get_reader.register(RetinaNet)
@get_reader.register(FCOS)
def _(detector: DenseDetector) -> Reader:
    return AnchorReader(
        **_dense(detector),
        anchor_generator=detector.anchor_generator,
        box2box_transform=detector.box2box_transform,
    )


@get_reader.register
def _(detector: PointDetector) -> Reader:  # ATSS, GFL, AutoAssign
    return PointReader(**_point(detector))


@get_reader.register
def _(detector: DDOD) -> Reader:
    return GuidedReader(**_point(detector))


@get_reader.register
def _(detector: GeneralizedRCNN) -> Reader:  # Faster, Mask and Cascade R-CNN
    base: dict[str, Any] = dict(
        detector=detector,
        backbone=detector.backbone,
        num_classes=detector.roi_heads.num_classes,
    )
    rpn = detector.proposal_generator
    if not isinstance(rpn, RPN):
        return Reader(**base)
    return AnchorReader(
        **base,
        head=rpn.rpn_head,
        head_in_features=tuple(rpn.in_features),
        num_logits=1,
        anchor_generator=rpn.anchor_generator,
        box2box_transform=rpn.box2box_transform,
    )


def _point(detector: PointDetector) -> dict[str, Any]:
    return dict(
        **_dense(detector),
        anchor_generator=detector.anchor_generator,
        padding=detector.pad_size_divisor,
    )


def _dense(detector: DenseDetector) -> dict[str, Any]:
    return dict(
        detector=detector,
        backbone=detector.backbone,
        num_classes=detector.num_classes,
        head=detector.head,
        head_in_features=tuple(detector.head_in_features),
    )
