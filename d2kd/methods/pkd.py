"""Pearson Knowledge Distillation (PKD, NeurIPS 2022, arXiv 2207.02039)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..targets import Targets
from .base import FeatureMethod, LevelPair

__all__ = ["PKD", "standardise"]


class PKD(FeatureMethod):
    """Each channel of the student should correlate with the same channel of the teacher.

    Both maps are `standardise`d; a level's loss is half their mean squared difference, and levels
    are summed. With M = N*H*W values in a channel and Pearson's r it is (M - 1) / M * mean_c (1 -
    r_c), in [0, 2]: the scale and the offset of a channel do not matter, neither the student's nor
    the teacher's, and `MCDropout` does the same with either `combine`. Statistics are those of
    the images on one GPU, as in the released code (mmrazor).

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
        return {"correlation": F.mse_loss(standardise(student), standardise(teacher)) / 2}


def standardise(features: Tensor, eps: float = 1e-6, least: float = 1e-3) -> Tensor:
    """Each channel with mean 0 and unbiased standard deviation 1 over images and cells.

    Args:
        features: (N, C, H, W).
        eps: added to the standard deviation.
        least: a channel whose deviation is no more than this part of its mean is constant but for
            rounding. Divided by that deviation, the noise would be all that is left, and its
            gradient thousands of times that of other channels. (Ours; the released code has none.)

    Returns:
        (N, C, H, W); zero, without a gradient, in constant channels, such as those of one cell.
    """
    # The unbiased deviation of one value is 0 / 0; its biased one is 0.
    single = features[:, 0].numel() == 1
    std, mean = torch.std_mean(features, (0, 2, 3), correction=int(not single), keepdim=True)
    constant = std <= least * mean.abs()
    return torch.where(constant, 0, (features - mean) / torch.where(constant, 1, std + eps))
