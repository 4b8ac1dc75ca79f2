"""Masked Generative Distillation (MGD, ECCV 2022, arXiv 2205.01529)."""

from __future__ import annotations

from torch import Tensor, nn

from ..targets import Targets
from ..values import check_coefficients, check_number
from .base import FeatureMethod, LevelPair

__all__ = ["MGD"]


class MGD(FeatureMethod):
    """The student's map, with most of its cells masked, must generate the teacher's whole map.

    The loss of a level is alpha / N * sum (G(m S) - T)^2, and levels are summed. S is the student's
    map, with the teacher's channels and grid. m is a random mask of cells: each image gets a new
    one at each step, and all channels share it. G is the generation block: two 3x3 convolutions of
    the teacher's width with a ReLU between them. G trains with the student and is not part of it.

    The sum is not divided by channels or cells, so the right alpha depends on both. The defaults
    are from the authors' code for one-stage detectors with five levels. For two-stage detectors
    they use mask 0.45, alpha 5e-7 and the four finest levels. `MCDropout(combine="sum")` doubles
    the target, so that the loss is about four times as large at first: divide alpha by four, or use
    combine="mean".

    Args:
        mask: fraction of the cells that are masked, in [0, 1); the paper's lambda.
        alpha: weight of the squared difference.
        shared: see `FeatureMethod`.

    Raises:
        ValueError: `mask` is outside [0, 1).
    """

    def __init__(self, *, mask: float = 0.65, alpha: float = 2e-5, **shared):
        super().__init__(**shared)
        check_coefficients("MGD", alpha=alpha)
        self.mask = check_number("MGD.mask", mask, below=1)
        self.alpha = alpha
        self.generation = nn.ModuleDict()

    def setup_level(self, pair: LevelPair) -> None:
        channels = pair.teacher_shape.channels
        self.generation[pair.student] = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )

    def draw(self, features: Tensor) -> Tensor:
        """Draw m, (N, 1, H, W), for a map (N, C, H, W): 0 in masked cells and 1 in the others."""
        n, _, h, w = features.shape
        return features.new_empty(n, 1, h, w).bernoulli_(1 - self.mask)

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        generated = self.generation[pair.student](student * self.draw(student))
        error = (generated - teacher).square().sum()
        return {"generation": self.alpha * error / student.shape[0]}
