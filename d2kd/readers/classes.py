"""The number of classes of any detector, also of one that no reader knows."""

from __future__ import annotations

from torch import nn

__all__ = ["num_classes"]


def num_classes(detector: nn.Module) -> int:
    """The number of classes by the part that has one; 0 if no part has."""
    parts = ("roi_heads", "sem_seg_head", "head", "criterion")
    for part in (detector, *(getattr(detector, name, None) for name in parts)):
        number = getattr(part, "num_classes", None)
        if isinstance(number, int):
            return number
    return 0
