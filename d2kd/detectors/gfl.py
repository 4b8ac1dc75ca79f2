"""Generalized Focal Loss.

Shapes: N images, R locations, G boxes, K classes; M is `reg_max`, so that a side has M + 1 bins.
Boxes are x1y1x2y2 in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2kd.targets import Targets

from .assigners import atss
from .base import Locations, PointDetector, Predictions
from .losses import distances, giou, iou, one_hot, positive_count, rank_mean, truth_at

__all__ = ["GFL", "distribution_focal_loss", "integral", "quality_focal_loss"]


def integral(logits: Tensor) -> Tensor:
    """The expected bin, sum of k * softmax(logits)_k over k = 0 ... M.

    Generalized Focal Loss, arXiv 2006.04388, section 3, "Distribution Focal Loss".

    Args:
        logits: (..., M + 1).

    Returns:
        (...) in [0, M].
    """
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * bins).sum(-1)


def quality_focal_loss(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """|target - p|^beta * BCE(p, target), where p = sigmoid(logits).

    Generalized Focal Loss, arXiv 2006.04388, section 3, "Quality Focal Loss". The factor has a
    gradient, too.

    Args:
        logits: (...) any shape.
        target: (...) in [0, 1]: for the class of a positive the quality of its box, else 0.

    Returns:
        (...) at least 0.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (target - logits.sigmoid()).abs().pow(beta) * entropy


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """-(k + 1 - target) log P_k - (target - k) log P_(k+1), where k = floor(target) and P is the
    softmax: the mass shall lie on the two bins around the target.

    Generalized Focal Loss, arXiv 2006.04388, section 3, "Distribution Focal Loss".

    Args:
        logits: (..., M + 1).
        target: (...) in [0, M], in bins.

    Returns:
        (...) at least 0.
    """
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    hat = (1 - (bins - target[..., None]).abs()).clamp(min=0)
    return -(hat * logits.log_softmax(-1)).sum(-1)


class GFL(PointDetector):
    """GFL (arXiv 2006.04388): class scores that are IoUs, sides that are distributions.

    The head regresses 4 * (M + 1) logits without a quality branch: for each side (left, top,
    right, bottom) M + 1 bins, the distance from the anchor's centre in strides. The anchors serve
    only the assignment, which is that of ATSS.
    """

    has_quality = False

    def __init__(self, *, reg_max: int = 16, topk: int = 9, **detector):
        """
        Args:
            reg_max: M, the largest distance in strides.
            topk: candidates of each box at each level.
            detector: see `PointDetector`; the head has 4 * (M + 1) box channels, no quality.
        """
        if topk < 1 or reg_max < 1:
            raise ValueError(f"GFL.topk and .reg_max: expected >= 1, found {topk} and {reg_max}")
        self.box_channels = 4 * (reg_max + 1)
        super().__init__(**detector)
        self.reg_max = reg_max
        self.topk = topk

    def sides(self, regression: Tensor) -> Tensor:
        """(N, R, 4 * (M + 1)) to the logits of each side, (N, R, 4, M + 1)."""
        return regression.unflatten(-1, (4, self.reg_max + 1))

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        reach = locations.strides[:, None] * integral(self.sides(regression))
        centers = locations.centers
        return torch.cat([centers - reach[..., :2], centers + reach[..., 2:]], -1)

    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> Tensor:
        return atss(locations, targets, inside, self.topk)

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> dict[str, Tensor]:
        """Quality focal loss; GIoU loss (weight 2) and distribution focal loss (weight 1/4).

        The first is divided by the number of positives, see `positive_count`. The others are
        weighted by the positive's best class probability and divided by the sum of the weights.
        """
        logits = predictions.logits
        matched = self.assign(locations, predictions, targets, inside)
        boxes, classes = truth_at(targets, matched)
        predicted = self.decode(locations, predictions.regression)

        quality = iou(predicted, boxes).detach()
        target = quality[..., None] * one_hot(classes, self.num_classes)
        weight = torch.where(matched >= 0, logits.detach().sigmoid().amax(-1), 0)
        total = rank_mean(weight.sum()).clamp(min=1)
        # 0.1 short of the last bin, as in the release.
        reach = distances(locations.centers, boxes) / locations.strides[:, None]
        reach = reach.clamp(0, self.reg_max - 0.1)
        spread = distribution_focal_loss(self.sides(predictions.regression), reach).mean(-1)
        focal = inside[..., None] * quality_focal_loss(logits, target)
        return {
            "loss_cls": focal.sum() / positive_count(matched),
            "loss_box_reg": 2 * (weight * (1 - giou(predicted, boxes))).sum() / total,
            "loss_dfl": 0.25 * (weight * spread).sum() / total,
        }
