"""ATSS: Adaptive Training Sample Selection (arXiv 1912.02424).

Where to find what: the assignment (algorithm 1) is `assigners.assign_atss`; the centerness target
is `centerness`; the losses are `ATSS.losses`.

Shapes: N images, R locations of all levels, G boxes per image, K classes. Boxes are x1y1x2y2 in
pixels of the padded input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from d2kd.targets import Targets

from .assigners import assign_atss
from .base import PointDetector
from .losses import gather_targets, giou, iou, ltrb_distances, num_positives, one_hot, reduce_mean
from .structures import Locations, Predictions

__all__ = ["ATSS", "centerness"]


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), FCOS, arXiv 1904.01355, section 3.3.

    l, t, r and b are the distances of a point to the left, top, right and bottom side of a box.

    Args:
        points: (..., 2) x, y.
        boxes: (..., 4).

    Returns:
        (...) in [0, 1]: 1 at the center of a box, 0 on its sides and outside.
    """
    left, top, right, bottom = ltrb_distances(points, boxes).clamp(min=0).unbind(-1)
    ratios = [
        torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-6)
        for a, b in ((left, right), (top, bottom))
    ]
    return (ratios[0] * ratios[1]).sqrt()


class ATSS(PointDetector):
    """ATSS: a RetinaNet with one anchor per location that assigns boxes by `assign_atss`.

    The head regresses Detectron2's box deltas of the anchors, with weights (10, 10, 5, 5). It also
    predicts a quality, by which the class scores of detections are multiplied.
    """

    def __init__(self, *, quality: str = "iou", topk: int = 9, **detector: Any):
        """
        Args:
            quality: what the head's quality branch learns. "centerness" of the location is the
                paper's. "iou" of the predicted box is used by the release of PGD (arXiv
                2203.05469).
            topk: candidates of each box at each level; k in the paper.
            detector: see `PointDetector`. The head needs a quality branch.

        Raises:
            ValueError: `quality` or `topk` has an impossible value, or the head has no quality
                branch.
        """
        super().__init__(**detector)
        if topk < 1:
            raise ValueError(f"{type(self).__name__}.topk: expected >= 1, found {topk}")
        if quality not in ("iou", "centerness"):
            raise ValueError(
                f"{type(self).__name__}: expected quality 'iou' or 'centerness', found {quality!r}."
                f" The paper uses 'centerness'."
            )
        self.quality = quality
        self.rank_by_quality = quality == "centerness"
        self.topk = topk
        self.box2box_transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        """See `PointDetector.decode`. `regression` is (N, R, 4) deltas of the anchors."""
        anchors = locations.anchors.expand_as(regression).reshape(-1, 4)
        boxes = self.box2box_transform.apply_deltas(regression.reshape(-1, 4), anchors)
        return boxes.view_as(regression)

    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> Tensor:
        """See `PointDetector.assign`. ATSS depends on the anchors only, not on `predictions`."""
        return assign_atss(locations, targets, in_image, self.topk)

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> dict[str, Tensor]:
        """See `PointDetector.losses`.

        There are three losses: the focal loss of the classes, the GIoU loss of the boxes (weight 2)
        and the binary cross entropy of the quality.

        The first and the last are divided by the number of positives, see `num_positives`. The GIoU
        loss too if the quality is "iou". If it is "centerness", each positive's GIoU loss is
        weighted by its centerness, and the sum is divided by the sum of these weights.
        """
        matched = self.assign(locations, predictions, targets, in_image)
        positive, count = matched >= 0, num_positives(matched)
        boxes, classes = gather_targets(targets, matched)
        predicted = self.decode(locations, predictions.regression)

        # Focal loss, arXiv 1708.02002, section 3, with the paper's alpha and gamma.
        focal = sigmoid_focal_loss(
            predictions.logits, one_hot(classes, self.num_classes), alpha=0.25, gamma=2
        )
        if self.quality == "iou":
            quality_target = iou(predicted, boxes).detach()
            weight, total = positive.float(), count
        else:
            quality_target = centerness(locations.centers, boxes)
            weight = torch.where(positive, quality_target, 0)
            total = reduce_mean(weight.sum()).clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(
            predictions.require_quality(), quality_target, reduction="none"
        )
        return {
            "loss_cls": (in_image[..., None] * focal).sum() / count,
            "loss_box_reg": 2 * (weight * (1 - giou(predicted, boxes))).sum() / total,
            f"loss_{self.quality}": (positive * entropy).sum() / count,
        }
