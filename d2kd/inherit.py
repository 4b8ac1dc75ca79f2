"""Inheritance: start the student with its teacher's neck and head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .readers import Reader

__all__ = ["Inherited", "inherit_weights"]

# Tensors of the bottom-up network are never copied.
_BOTTOM_UP = "backbone.bottom_up."


class Inherited(NamedTuple):
    """What `inherit_weights` copied.

    Attributes:
        copied: names of the copied tensors.
        other_shape: names that both have, with different shapes.
        missing: number of the teacher's tensors that the student does not have.
        share: copied values over all values of the student's neck and head, in [0, 1].
    """

    copied: list[str]
    other_shape: list[str]
    missing: int
    share: float

    def __str__(self) -> str:
        total = len(self.copied) + len(self.other_shape) + self.missing
        examples = f" ({', '.join(self.other_shape[:5])})" if self.other_shape else ""
        return (
            f"{len(self.copied)} of {total} tensors, {self.share:.0%} of the student's neck and "
            f"head; {len(self.other_shape)} have another shape{examples}, {self.missing} do not "
            f"exist in the student"
        )


@torch.no_grad()
def inherit_weights(student: Reader, teacher: Reader) -> Inherited:
    """Copy the teacher's tensors outside the bottom-up network that fit by name and shape.

    The released codes of FGD and PGD copy every entry outside the backbone. In Detectron2 the neck
    is a part of `backbone`, so this is everything outside `backbone.bottom_up`. Integer tensors are
    not copied: they count what the network itself has seen, such as the batches of a BatchNorm or
    the positives of DDOD's levels.

    Raises:
        ValueError: nothing fits.
    """
    source, target = _neck_and_head(teacher), _neck_and_head(student)
    other_shape = [k for k, v in source.items() if k in target and target[k].shape != v.shape]
    copied = [k for k in source if k in target and k not in other_shape]
    if not copied:
        raise ValueError(
            f"inherit=True: expected tensors of the teacher's neck and head that fit the student "
            f"by name and shape, found none of {len(source)} ({teacher.name} to {student.name}). "
            f"Give both the same neck and head widths, or set inherit=False."
        )
    for name in copied:
        target[name].copy_(source[name])
    values = sum(target[name].numel() for name in copied)
    share = values / sum(x.numel() for x in target.values())
    return Inherited(copied, other_shape, len(source) - len(copied) - len(other_shape), share)


def _neck_and_head(reader: Reader) -> dict[str, Tensor]:
    """The detector's floating-point tensors outside its bottom-up network."""
    has_neck = hasattr(reader.backbone, "bottom_up")
    return {
        name: tensor
        for name, tensor in reader.detector.state_dict().items()
        if tensor.is_floating_point()
        and not name.startswith(_BOTTOM_UP)
        and (has_neck or not name.startswith("backbone."))
    }
