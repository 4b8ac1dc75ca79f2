"""Pearson Knowledge Distillation (PKD, NeurIPS 2022, arXiv 2207.02039)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..targets import Targets
from .base import FeatureMethod, LevelPair
from .kernels.blocks import by_channels

__all__ = ["PKD", "standardize"]


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of standardized maps (N, C, R), summed over all that there is."""
    return (standardize(student) - standardize(teacher)).square().sum() / 2


class PKD(FeatureMethod):
    """Each channel of the student should correlate with the same channel of the teacher.

    Both maps are `standardize`d; a level's loss is half their mean squared difference, and levels
    are summed. With M = N*H*W values in a channel and Pearson's r it is (M - 1) / M * mean_c (1 -
    r_c), in [0, 2]: the scale and the offset of a channel do not matter, neither the student's nor
    the teacher's, while its mean is below 1000 of its deviations (see `standardize`), and
    `MCDropout` does the same with either `combine`. Statistics are those of the images on one GPU,
    as in the released code (mmrazor).

    As published it has no adapter and takes the four finest levels of the pyramid, even of five:
    p3 to p6 of RetinaNet, p2 to p5 of Faster R-CNN. Here `levels` decides, and a student of
    another width than the teacher's gets an adapter, as in any `FeatureMethod`.

    Args:
        weight: published are 6 for Faster R-CNN and for RetinaNet taught by Mask R-CNN with a Swin
            backbone; 10 for RetinaNet taught by RetinaNet or FCOS with ResNeXt-101 and for
            RepPoints.
        shared: see `FeatureMethod`.
    """

    def __init__(self, *, weight: float = 6.0, **shared):
        super().__init__(weight=weight, **shared)

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        unlike = by_channels(correlation, student.flatten(2), teacher.flatten(2))
        return {"correlation": unlike / student.numel()}


def standardize(features: Tensor, eps: float = 1e-6, least: float = 1e-3) -> Tensor:
    """Each channel with mean 0 and unbiased standard deviation 1 over images and cells.

    Args:
        features: (N, C, R).
        eps: added to the standard deviation.
        least: a channel whose deviation is no more than this part of its mean is constant but for
            rounding. Divided by that deviation, the noise would be all that is left, and its
            gradient thousands of times that of other channels. (Ours; the released code has none.)

    Returns:
        (N, C, R); zero, without a gradient, in constant channels, such as those of one cell.
    """
    # torch.std_mean takes three times as long on a CPU.
    mean = features.mean((0, 2), keepdim=True)
    centred = features - mean
    square = (centred * centred).sum((0, 2), keepdim=True)
    # The unbiased deviation of one value would be 0 / 0. No root of 0, whose slope has no bound.
    variance = square / max(features[:, 0].numel() - 1, 1)
    constant = variance <= (least * mean).square()
    std = torch.where(constant, 1, variance).sqrt()
    return torch.where(constant, 0, 1 / (std + eps)) * centred
