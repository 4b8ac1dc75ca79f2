"""Channel-wise Knowledge Distillation (CWD, ICCV 2021, arXiv 2011.13256)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..targets import Targets
from ..values import check_number
from .base import FeatureMethod, LevelPair
from .kernels.blocks import by_channels

__all__ = ["CWD"]


def divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """KL(teacher || student) of the softmax over the cells of maps (N, C, R) / tau, summed."""
    log_s, log_t = ((x / tau).log_softmax(2) for x in (student, teacher))
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True)


class CWD(FeatureMethod):
    """Each channel of the student should be active where the same channel of the teacher is active.

    A softmax over the cells of an image turns each channel into a distribution. The loss of a level
    is tau^2 / (N C) * sum KL(teacher || student), and levels are summed. An offset of a channel
    does not change the loss, a factor does. For example, `MCDropout(combine="sum")` doubles the
    teacher's maps, which has the effect of half the temperature. A level of one cell has a loss of
    zero.

    The defaults are from mmrazor, for five levels of the pyramid of Faster R-CNN and RetinaNet.

    Args:
        tau: temperature of the softmax.
        weight: see `Method`.
        shared: see `FeatureMethod`.

    Raises:
        ValueError: `tau` is not positive.
    """

    def __init__(self, *, tau: float = 1.0, weight: float = 10.0, **shared):
        super().__init__(weight=weight, **shared)
        self.tau = check_number("CWD.tau", tau, above=0)

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        n, c = student.shape[:2]
        total = by_channels(divergence, student.flatten(2), teacher.flatten(2), self.tau)
        return {"divergence": self.tau**2 / (n * c) * total}
