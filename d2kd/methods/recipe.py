"""The recipe that d2kd recommends, for people who do not want to choose a method."""

from __future__ import annotations

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from .base import Methods
from .pkd import PKD

__all__ = ["recommended"]


def recommended() -> DictConfig:
    """The method that d2kd recommends, as a node for `Distiller(methods=recommended())`.

    It is PKD, because PKD has one weight, does not depend on the scale of the maps, and fits any
    two detectors with a pyramid. In docs/results.md, it helps in short trainings, and together with
    a teacher's labels. In long trainings with all labels on photographs, neither PKD nor another
    method is better than the student alone.

    Fields can be changed as in any recipe: `model.methods.pkd.weight=3`.
    """
    return L(Methods)(pkd=L(PKD)())
