"""Plain feature mimicking (the hint loss of FitNets, arXiv 1412.6550, on the pyramid)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..targets import Targets
from .base import FeatureMethod, LevelPair

__all__ = ["Mimic"]


class Mimic(FeatureMethod):
    """Mean squared error between the student's and the teacher's maps, at all positions.

    The loss of a level is the mean over images, channels and cells. Levels are summed.
    """

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        return {"mse": F.mse_loss(student, teacher)}
