"""Channel-wise Knowledge Distillation (CWD, ICCV 2021, arXiv 2011.13256)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..targets import Targets
from .base import FeatureMethod, LevelPair
from .kernels.blocks import by_channels

__all__ = ["CWD"]


def divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """KL(teacher || student) of the softmax over cells of maps (N, C, R) / tau, summed."""
    log_s, log_t = ((x / tau).log_softmax(2) for x in (student, teacher))
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True)


class CWD(FeatureMethod):
    """Each channel of the student should be active where the same channel of the teacher is.

    A softmax over the cells of an image makes a distribution of each channel; a level's loss is
    tau^2 / (N C) * sum KL(teacher || student), and levels are summed. The offset of a channel does
    not matter, its scale does: with `MCDropout(combine="sum")` the teacher's distributions are
    those of half the temperature. A level of one cell has nothing to teach, and costs nothing.

    The defaults are those of mmrazor on five levels of Faster R-CNN's and RetinaNet's pyramid.

    Args:
        tau: temperature of the softmax.
        weight: see `Method`.
        shared: see `FeatureMethod`.

    Raises:
        ValueError: `tau` is not positive.
    """

    def __init__(self, *, tau: float = 1.0, weight: float = 10.0, **shared):
        super().__init__(weight=weight, **shared)
        if tau <= 0:
            raise ValueError(f"CWD.tau: expected > 0, found {tau}")
        self.tau = tau

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        n, c = student.shape[:2]
        unlike = by_channels(divergence, student.flatten(2), teacher.flatten(2), self.tau)
        return {"divergence": self.tau**2 / (n * c) * unlike}
