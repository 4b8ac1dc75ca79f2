"""Refuse detectors of rotated boxes."""

from __future__ import annotations

from detectron2.modeling.anchor_generator import RotatedAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformRotated
from torch import nn

__all__ = ["check_upright"]


def check_upright(model: nn.Module, role: str) -> None:
    """Refuse a detector of rotated boxes. Methods and label fusion compare upright boxes.

    Args:
        role: what the detector is for, for the message.

    Raises:
        ValueError: a part of the detector codes boxes by five numbers.
    """
    for name, module in model.named_modules():
        rotated = isinstance(module, RotatedAnchorGenerator) or any(
            isinstance(value, Box2BoxTransformRotated) for value in vars(module).values()
        )
        if rotated:
            raise ValueError(
                f"{role} {type(model).__name__}: expected a detector of upright boxes "
                f"(x1, y1, x2, y2), found rotated boxes in {name or 'the detector'} "
                f"({type(module).__name__}). Give a detector of upright boxes; d2kd does not "
                f"support rotated ones."
            )
