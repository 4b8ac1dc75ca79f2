"""ATSS.

Shapes: N images, R locations, G boxes, K classes. Boxes are x1y1x2y2 in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from d2kd.targets import Targets

from .assigners import atss
from .base import Locations, PointDetector, Predictions
from .losses import distances, giou, iou, one_hot, positive_count, rank_mean, truth_at

__all__ = ["ATSS", "centerness"]


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), FCOS, arXiv 1904.01355, section 3.3.

    Args:
        points: (..., 2) x, y.
        boxes: (..., 4).

    Returns:
        (...) in [0, 1]: 1 at a box's centre, 0 at its sides and outside.
    """
    left, top, right, bottom = distances(points, boxes).clamp(min=0).unbind(-1)
    ratios = [
        torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-6)
        for a, b in ((left, right), (top, bottom))
    ]
    return (ratios[0] * ratios[1]).sqrt()


class ATSS(PointDetector):
    """ATSS (arXiv 1912.02424): RetinaNet with one anchor a location, and `assigners.atss`.

    The head regresses Detectron2's deltas of the anchors, with weights (10, 10, 5, 5), and a
    quality, by which detections are multiplied.
    """

    def __init__(self, *, quality: str = "iou", topk: int = 9, **detector):
        """
        Args:
            quality: what the head's quality branch learns: "centerness" of the location, as in the
                paper, or the "iou" of the predicted box, as in the release of PGD (arXiv
                2203.05469).
            topk: candidates of each box at each level.
            detector: see `PointDetector`; the head has a quality branch.

        Raises:
            ValueError: another quality, or a head without its branch.
        """
        super().__init__(**detector)
        if topk < 1:
            raise ValueError(f"{type(self).__name__}.topk: expected >= 1, found {topk}")
        if quality not in ("iou", "centerness"):
            raise ValueError(
                f"ATSS: expected quality 'iou' or 'centerness', found {quality!r}. "
                f"'centerness' is the paper's."
            )
        self.quality = quality
        self.rank_by_quality = quality == "centerness"
        self.topk = topk
        self.box2box_transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        anchors = locations.anchors.expand_as(regression).reshape(-1, 4)
        boxes = self.box2box_transform.apply_deltas(regression.reshape(-1, 4), anchors)
        return boxes.view_as(regression)

    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> Tensor:
        return atss(locations, targets, inside, self.topk)

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> dict[str, Tensor]:
        """Focal loss, GIoU loss (weight 2) and the quality's cross entropy.

        The first and the last are divided by the number of positives, see `positive_count`. With
        "centerness" the GIoU loss is weighted by it and divided by the sum of the weights.
        """
        matched = self.assign(locations, predictions, targets, inside)
        positive, count = matched >= 0, positive_count(matched)
        boxes, classes = truth_at(targets, matched)
        predicted = self.decode(locations, predictions.regression)

        focal = sigmoid_focal_loss(
            predictions.logits, one_hot(classes, self.num_classes), alpha=0.25, gamma=2
        )
        if self.quality == "iou":
            target = iou(predicted, boxes).detach()
            weight, total = positive.float(), count
        else:
            target = centerness(locations.centers, boxes)
            weight = torch.where(positive, target, 0)
            total = rank_mean(weight.sum()).clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(predictions.quality, target, reduction="none")
        return {
            "loss_cls": (inside[..., None] * focal).sum() / count,
            "loss_box_reg": 2 * (weight * (1 - giou(predicted, boxes))).sum() / total,
            f"loss_{self.quality}": (positive * entropy).sum() / count,
        }
