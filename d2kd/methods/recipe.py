"""The recipe that d2kd recommends, for people who do not want to choose a method."""

from __future__ import annotations

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from .base import Methods
from .pkd import PKD

__all__ = ["recommended"]


def recommended(detector: str = "dense") -> DictConfig:
    """The methods that d2kd recommends, as a node for `Distiller(methods=recommended())`.

    Fields can be changed as in any recipe: `model.methods.pkd.weight=3`.

    Args:
        detector: "dense" if student and teacher are dense detectors (RetinaNet, FCOS, GFL, ...).
            "two_stage" if one of them has proposals (Faster, Mask or Cascade R-CNN); that recipe
            has methods on features only, and fits any two detectors with a pyramid.

    Raises:
        ValueError: `detector` is neither of the two.
    """
    # The choice and the weights are from the measurements in docs/results.md.
    recipes = {
        "dense": L(Methods)(pkd=L(PKD)()),
        "two_stage": L(Methods)(pkd=L(PKD)()),
    }
    if detector not in recipes:
        raise ValueError(
            f"recommended: expected detector to be {' or '.join(map(repr, recipes))}, found "
            f"{detector!r}"
        )
    return recipes[detector]
