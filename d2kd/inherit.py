"""Inheritance: start the student with its teacher's neck and head."""

from __future__ import annotations

import torch

from .readers import Reader

__all__ = ["inherit_weights"]

# Tensors of the bottom-up network are never copied.
_BOTTOM_UP = "backbone.bottom_up."


@torch.no_grad()
def inherit_weights(student: Reader, teacher: Reader) -> str:
    """Copy the teacher's tensors outside the bottom-up network that fit by name and shape.

    The released codes of FGD and PGD copy every entry outside the backbone. In Detectron2 the neck
    is a part of `backbone`, so this is everything outside `backbone.bottom_up`. Integer tensors are
    not copied: they count what the network itself has seen, such as the batches of a BatchNorm or
    the positives of DDOD's levels.

    Returns:
        a line with the counts, for the log.

    Raises:
        ValueError: nothing fits.
    """
    source = {
        name: tensor
        for name, tensor in teacher.detector.state_dict().items()
        if tensor.is_floating_point()
        and not name.startswith(_BOTTOM_UP)
        and (hasattr(teacher.backbone, "bottom_up") or not name.startswith("backbone."))
    }
    own = student.detector.state_dict()
    other_shape = [k for k, v in source.items() if k in own and own[k].shape != v.shape]
    fits = [k for k in source if k in own and k not in other_shape]
    if not fits:
        raise ValueError(
            f"inherit=True: expected tensors of the teacher's neck and head that fit the student "
            f"by name and shape, found none of {len(source)} ({teacher.name} to {student.name}). "
            f"Give both the same neck and head widths, or set inherit=False."
        )
    for name in fits:
        own[name].copy_(source[name])
    absent = len(source) - len(fits) - len(other_shape)
    return (
        f"{len(fits)} of {len(source)} tensors copied, {len(other_shape)} of another shape, "
        f"{absent} that the student has not"
        + (f"; another shape: {', '.join(other_shape[:5])}" if other_shape else "")
    )
