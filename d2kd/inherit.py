"""Inheritance: a student that starts with its teacher's neck and head."""

from __future__ import annotations

import torch

from .readers import Reader

__all__ = ["inherit_weights"]

# Tensors of the bottom-up network stay the student's own.
_BOTTOM_UP = "backbone.bottom_up."


@torch.no_grad()
def inherit_weights(student: Reader, teacher: Reader) -> str:
    """Copy each teacher tensor outside the bottom-up backbone whose name and shape fit.

    Integer tensors stay: they count what a network itself has seen (batches of a BatchNorm,
    positives of DDOD's levels).

    As released by FGD and PGD, which copy every entry that is not the backbone's (in Detectron2's
    naming, where the neck is part of `backbone`: everything outside `backbone.bottom_up`).

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
