"""Pearson Knowledge Distillation (PKD, NeurIPS 2022, arXiv 2207.02039)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..targets import Targets
from .base import FeatureMethod, LevelPair
from .kernels.blocks import by_channels

__all__ = ["PKD", "standardize"]


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of the standardized maps (N, C, R), summed over all values."""
    return (standardize(student) - standardize(teacher)).square().sum() / 2


class PKD(FeatureMethod):
    """Each channel of the student should correlate with the same channel of the teacher.

    Both maps are standardized, see `standardize`. The loss of a level is half their mean squared
    difference, and levels are summed. With M = N*H*W values in a channel and Pearson's correlation
    r_c, it equals (M - 1) / M * mean_c (1 - r_c), which lies in [0, 2]. So the scale and the offset
    of a channel do not matter, as long as its mean is below 1000 deviations. `MCDropout` gives the
    same loss with either `combine`. The statistics are over the images on one GPU, as in the
    released code (mmrazor).

    The published form has no adapter and takes the four finest levels of the pyramid, even of five:
    p3 to p6 of RetinaNet, p2 to p5 of Faster R-CNN. Here `levels` selects the levels, and a student
    with other channels than the teacher gets an adapter, as in any `FeatureMethod`.

    Args:
        weight: published values are 6 for Faster R-CNN and for RetinaNet taught by Mask R-CNN with
            a Swin backbone, and 10 for RepPoints and for RetinaNet taught by RetinaNet or FCOS with
            ResNeXt-101.
        shared: see `FeatureMethod`.
    """

    def __init__(self, *, weight: float = 6.0, **shared):
        super().__init__(weight=weight, **shared)

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        total = by_channels(correlation, student.flatten(2), teacher.flatten(2))
        return {"correlation": total / student.numel()}


def standardize(features: Tensor, eps: float = 1e-6, least: float = 1e-3) -> Tensor:
    """Give each channel mean 0 and unbiased standard deviation 1 over images and cells.

    Args:
        features: (N, C, R).
        eps: added to the standard deviation.
        least: a channel whose deviation is at most this fraction of its mean counts as constant.
            Dividing by such a small deviation would leave only rounding noise, with a gradient
            thousands of times as large as in other channels. This limit is ours; the released code
            has none.

    Returns:
        (N, C, R); zero and without a gradient in constant channels, for example with one cell.
    """
    # torch.std_mean takes three times as long on a CPU.
    mean = features.mean((0, 2), keepdim=True)
    centered = features - mean
    square = (centered * centered).sum((0, 2), keepdim=True)
    # max(): the unbiased deviation of a single value would be 0 / 0. Constant channels take the
    # root of 1, because the slope of the root is infinite at 0.
    variance = square / max(features[:, 0].numel() - 1, 1)
    constant = variance <= (least * mean).square()
    std = torch.where(constant, 1, variance).sqrt()
    return torch.where(constant, 0, 1 / (std + eps)) * centered
