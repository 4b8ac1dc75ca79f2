"""GFL: Generalized Focal Loss (arXiv 2006.04388).

Where to find what: `quality_focal_loss` is QFL, `distribution_focal_loss` is DFL, `integral` turns
a distribution into a distance, and `GFL.losses` combines them. All three are in section 3 of the
paper.

Shapes: N images, R locations of all levels, G boxes per image, K classes. M is `reg_max`, so that
each side of a box has M + 1 bins. Boxes are x1y1x2y2 in pixels of the padded input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2kd.targets import Targets

from .assigners import assign_atss
from .base import PointDetector
from .losses import gather_targets, giou, iou, ltrb_distances, num_positives, one_hot, reduce_mean
from .structures import Locations, Predictions

__all__ = ["GFL", "distribution_focal_loss", "integral", "quality_focal_loss"]


def integral(logits: Tensor) -> Tensor:
    """Expected bin: the sum of k * softmax(logits)_k over k = 0 ... M.

    Generalized Focal Loss, arXiv 2006.04388, section 3, "Distribution Focal Loss".

    Args:
        logits: (..., M + 1).

    Returns:
        (...) in [0, M].
    """
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * bins).sum(-1)


def quality_focal_loss(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """QFL: |target - p|^beta * BCE(p, target), where p = sigmoid(logits).

    Generalized Focal Loss, arXiv 2006.04388, section 3, "Quality Focal Loss". The factor
    |target - p|^beta has a gradient too, as in the released code.

    Args:
        logits: (...) any shape.
        target: (...) in [0, 1]. For the class of a positive, it is the IoU of the predicted box and
            the true box. Everywhere else it is 0.
        beta: exponent of the factor; the paper's value is 2.

    Returns:
        (...) at least 0.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (target - logits.sigmoid()).abs().pow(beta) * entropy


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """DFL: -(k + 1 - target) log P_k - (target - k) log P_(k+1), where k = floor(target).

    P is the softmax of the logits. The loss pulls the probability towards the two bins next to the
    target. For example, the target 3.25 asks for 0.75 in bin 3 and 0.25 in bin 4.

    Generalized Focal Loss, arXiv 2006.04388, section 3, "Distribution Focal Loss".

    Args:
        logits: (..., M + 1).
        target: (...) in [0, M], in bins.

    Returns:
        (...) at least 0.
    """
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    # The weight of a bin falls linearly from 1 at the target to 0 at a distance of one bin. This
    # gives the two factors above, and 0 for all other bins.
    bin_weights = (1 - (bins - target[..., None]).abs()).clamp(min=0)
    return -(bin_weights * logits.log_softmax(-1)).sum(-1)


class GFL(PointDetector):
    """GFL: the class score is trained to be the IoU, and each side of a box is a distribution.

    The head has 4 * (M + 1) box channels and no quality branch. The channels are the logits of
    M + 1 bins for each side (left, top, right, bottom). Bin k stands for a distance of k strides
    from the anchor's center. Boxes are assigned as in ATSS. The anchors serve only for that.
    """

    has_quality = False

    def __init__(self, *, reg_max: int = 16, topk: int = 9, **detector: Any):
        """
        Args:
            reg_max: M, the largest distance of a side from the center, in strides.
            topk: candidates of each box at each level.
            detector: see `PointDetector`. The head needs 4 * (M + 1) box channels and no quality
                branch.

        Raises:
            ValueError: `reg_max` or `topk` is less than 1, or the head does not fit.
        """
        if topk < 1 or reg_max < 1:
            raise ValueError(f"GFL.topk and .reg_max: expected >= 1, found {topk} and {reg_max}")
        self.box_channels = 4 * (reg_max + 1)
        super().__init__(**detector)
        self.reg_max = reg_max
        self.topk = topk

    def side_logits(self, regression: Tensor) -> Tensor:
        """(N, R, 4 * (M + 1)) to the logits of each side, (N, R, 4, M + 1)."""
        return regression.unflatten(-1, (4, self.reg_max + 1))

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        """See `PointDetector.decode`. `regression` is (N, R, 4 * (M + 1)) logits."""
        ltrb = locations.strides[:, None] * integral(self.side_logits(regression))
        centers = locations.centers
        return torch.cat([centers - ltrb[..., :2], centers + ltrb[..., 2:]], -1)

    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> Tensor:
        """See `PointDetector.assign`. It depends on the anchors only, not on `predictions`."""
        return assign_atss(locations, targets, in_image, self.topk)

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> dict[str, Tensor]:
        """See `PointDetector.losses`.

        There are three losses: QFL of the classes, the GIoU loss of the boxes (weight 2) and DFL of
        their sides (weight 1/4).

        QFL is divided by the number of positives, see `num_positives`. In the other two, each
        positive is weighted by the probability of its most probable class, without gradient, and
        the sum is divided by the sum of these weights.
        """
        logits = predictions.logits
        matched = self.assign(locations, predictions, targets, in_image)
        boxes, classes = gather_targets(targets, matched)
        predicted = self.decode(locations, predictions.regression)

        quality = iou(predicted, boxes).detach()
        qfl_target = quality[..., None] * one_hot(classes, self.num_classes)
        qfl = in_image[..., None] * quality_focal_loss(logits, qfl_target)

        weight = torch.where(matched >= 0, logits.detach().sigmoid().amax(-1), 0)
        total = reduce_mean(weight.sum()).clamp(min=1)
        # Distances to the sides in strides. As in the released code, they end 0.1 before bin M.
        dfl_target = ltrb_distances(locations.centers, boxes) / locations.strides[:, None]
        dfl_target = dfl_target.clamp(0, self.reg_max - 0.1)
        dfl = distribution_focal_loss(self.side_logits(predictions.regression), dfl_target)
        return {
            "loss_cls": qfl.sum() / num_positives(matched),
            "loss_box_reg": 2 * (weight * (1 - giou(predicted, boxes))).sum() / total,
            "loss_dfl": 0.25 * (weight * dfl.mean(-1)).sum() / total,
        }
