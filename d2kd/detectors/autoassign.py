"""AutoAssign: Differentiable Label Assignment for Dense Object Detection (arXiv 2007.03496).

Where to find what: center weighting is `CenterPrior`, confidence weighting is
`AutoAssign.positive_weights` and `AutoAssign.negative_weights`, and `AutoAssign.losses` combines
them.

Shapes: N images, K classes, G boxes per image, R locations of all levels. Boxes are x1y1x2y2 in
pixels of the padded input. Tensors of pairs of boxes and locations are (N, G, R). They are computed
for a few boxes at a time, to bound the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2kd.targets import Targets

from .assigners import resolve_conflicts
from .base import PointDetector
from .losses import giou, iou, reduce_mean
from .structures import Locations, Predictions

__all__ = ["AutoAssign", "CenterPrior", "PositiveWeights", "split_boxes"]


class CenterPrior(nn.Module):
    """Center weighting: a prior for how positive a location is, by its distance to a box's center.

    The prior is a Gaussian of that distance, measured in strides of the location's level. Each
    class has its own offset `mu` and width `sd`, both (K, 2) for x and y. They are learned.

    AutoAssign, arXiv 2007.03496, "Center Weighting".
    """

    def __init__(self, num_classes: int, force_topk: bool = False, topk: int = 9):
        """
        Args:
            num_classes: K.
            force_topk: a box can be so small that it contains no location. If `force_topk` is True,
                the `topk` locations with the largest prior count as inside such a box. If it is
                False, as in the released configs, such a box adds the constant 100 to its positive
                loss, without a gradient.
            topk: number of locations for such a box.
        """
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(num_classes, 2))
        self.sd = nn.Parameter(torch.ones(num_classes, 2))
        self.force_topk, self.topk = force_topk, topk

    def forward(self, locations: Locations, targets: Targets) -> tuple[Tensor, Tensor]:
        """
        Args:
            locations: points and levels.
            targets: ground truth.

        Returns:
            (N, G, R) prior in [0, 1], which is 0 outside the box; (N, G, R) bool in-box mask, True
            for locations strictly inside the box.
        """
        boxes, classes = targets.boxes[..., None], targets.classes.clamp(min=0)
        in_box = targets.valid[..., None]
        exponent = boxes.new_zeros(())
        for axis, points in enumerate(locations.centers.unbind(-1)):
            low, high = boxes[:, :, axis], boxes[:, :, axis + 2]  # (N, G, 1)
            in_box = in_box & (points > low) & (points < high)
            offset = (points - (low + high) / 2) / locations.strides - self.mu[classes, axis, None]
            exponent = exponent - offset.square() / (2 * self.sd[classes, axis, None].square())
        if self.force_topk:
            nearest = exponent.detach().topk(min(self.topk, exponent.shape[-1]))[1]
            forced = torch.zeros_like(in_box).scatter(-1, nearest, True)
            empty = ~in_box.any(-1, keepdim=True)  # boxes that contain no location
            in_box = in_box | (forced & targets.valid[..., None] & empty)
        return torch.where(in_box, exponent.exp(), 0), in_box


class PositiveWeights(NamedTuple):
    """The quantities of all pairs of boxes and locations, (N, G, R) each.

    Attributes:
        likelihood: P, the predicted confidence that the location detects the box.
        weight: W, the positive weight; it sums to 1 over the locations of a box.
        prior: the center prior, see `CenterPrior`.
        in_box: bool, True for locations inside the box.
    """

    likelihood: Tensor
    weight: Tensor
    prior: Tensor
    in_box: Tensor


def split_boxes(targets: Targets, size: int) -> Iterator[Targets]:
    """Split the boxes of all images into chunks of at most `size` boxes per image.

    Without any box, one chunk with one invalid box is returned, so that the losses keep their
    graph.
    """
    boxes, classes, valid = targets.boxes, targets.classes, targets.valid
    if not valid.shape[1]:
        boxes = F.pad(boxes, (0, 0, 0, 1))
        classes = F.pad(classes, (0, 1))
        valid = F.pad(valid, (0, 1))
    chunks = zip(boxes.split(size, 1), classes.split(size, 1), valid.split(size, 1), strict=True)
    for box_chunk, class_chunk, valid_chunk in chunks:
        yield replace(targets, boxes=box_chunk, classes=class_chunk, valid=valid_chunk)


class AutoAssign(PointDetector):
    """AutoAssign: every location in a box is a positive and a negative, with learned weights.

    The weights follow from the location's own predictions and from a learned center prior.

    The head is a `PointHead` with `conv_bias=True, prior_prob=0.02, box_bias=4.0`. Its quality
    branch is the objectness. Only the product of objectness and class probability is trained. The
    box regression, after a ReLU, is the distance to the left, top, right and bottom side, in
    strides.

    There is one deliberate departure from the released code. Where boxes of one class overlap, each
    box gives a location a negative weight for that class; we use the smallest of them. The release
    keeps the weight of the box that was written last. This depends on the order of the boxes, and
    on a GPU the order is not even defined.

    As in the release, a batch without any box has a large negative loss, because nothing normalizes
    the sum over all locations. Detectron2's data loader drops images without boxes by default.
    """

    anchor_scale = 1
    pad_size_divisor = 0
    rank_by_quality = True

    pos_weight = 0.25
    """Weight of the positive loss."""
    neg_weight = 0.75
    """Weight of the negative loss."""
    center_weight = 0.75
    """Weight of the center loss."""
    box_weight = 5.0
    """Factor of 1 - GIoU in the exponent of the localization's likelihood."""
    num_assigned = 9
    """Number of locations that `assign` gives to a box."""
    chunk_size = 32
    """True boxes of an image that are compared with all locations at the same time. It bounds the
    memory and does not change the result."""

    def __init__(self, *, force_topk: bool = False, **detector: Any):
        """
        Args:
            force_topk: see `CenterPrior`.
            detector: see `PointDetector`.

        Raises:
            ValueError: the head has no quality branch.
        """
        super().__init__(**detector)
        self.center_prior = CenterPrior(self.num_classes, force_topk)

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        """See `PointDetector.decode`. `regression` is (N, R, 4): l, t, r, b in strides."""
        left_top, right_bottom = (regression.relu() * locations.strides[:, None]).split(2, -1)
        return torch.cat([locations.centers - left_top, locations.centers + right_bottom], -1)

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> dict[str, Tensor]:
        """See `PointDetector.losses`.

        There are three losses, weighted by `pos_weight`, `neg_weight` and `center_weight`:

        - positive: -log(sum over locations of W * P), summed over boxes, divided by their number;
        - negative: m^2 * -log(1 - m), where m = negative weight * class probability * objectness,
          summed over locations and classes, divided by the sum of the center prior;
        - center: the number of boxes of an image, divided by the sum of the image's center prior,
          averaged over images. It is part of the released code and keeps the prior from shrinking.

        All locations take part, also those in the padding; `in_image` is not used.
        """
        boxes, joint = self.decode(locations, predictions.regression), self._joint(predictions)
        chunks = list(split_boxes(targets, self.chunk_size))
        if len(chunks) == 1:
            parts = [self._positive_parts(locations, boxes, joint, chunks[0])]
        else:
            # With many boxes, the pairs of boxes and locations would fill the memory until the
            # backward pass. They are computed again there instead.
            parts = [
                checkpoint(
                    self._positive_parts,
                    locations,
                    boxes,
                    joint,
                    chunk,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for chunk in chunks
            ]
        positive, prior_sum, covered = (torch.cat(x, 1) for x in zip(*parts, strict=True))
        prior_sum, any_covered = prior_sum.sum(1), covered.any(1)
        num_boxes = targets.valid.sum(1).float()
        center = torch.where(any_covered, num_boxes / prior_sum.clamp(min=1e-12), 0 * prior_sum)
        weights = self.negative_weights(locations, boxes, targets)
        negative = _negative_loss(joint, weights) / reduce_mean(prior_sum.sum()).clamp(min=1)
        total_boxes = reduce_mean(num_boxes.sum()).clamp(min=1)
        return {
            "loss_pos": self.pos_weight * positive.sum() / total_boxes,
            "loss_neg": self.neg_weight * negative,
            "loss_center": self.center_weight * center.mean(),
        }

    @torch.no_grad()
    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> Tensor:
        """See `PointDetector.assign`. `in_image` is not used.

        AutoAssign itself has no positives, only weights. This method exists for distillation
        methods and other code that need positives. For each box, it takes the `num_assigned`
        locations inside the box with the largest positive weights. If several boxes claim a
        location, the box with the larger weight gets it. This rule is ours; neither the paper nor
        a release defines one. The number 9 is the one that the release's `force_topk` uses.
        """
        boxes, joint = self.decode(locations, predictions.regression), self._joint(predictions)
        values, indices = [], []
        for chunk in split_boxes(targets, self.chunk_size):
            pairs = self.positive_weights(locations, boxes, joint, chunk)
            weight = torch.where(pairs.in_box, pairs.weight, -1)
            value, index = weight.topk(min(self.num_assigned, weight.shape[-1]))
            values.append(value)
            indices.append(index)
        index, value = torch.cat(indices, 1), torch.cat(values, 1)
        return resolve_conflicts(index, value, value >= 0, boxes.shape[1])

    def positive_weights(
        self, locations: Locations, boxes: Tensor, joint: Tensor, targets: Targets
    ) -> PositiveWeights:
        """Compute how positive each location is for each box.

        P = class probability * objectness * exp(-5 (1 - GIoU)) and W = prior * exp(3 P), divided by
        its sum over the locations of a box.

        AutoAssign, arXiv 2007.03496, "Confidence Weighting" and the positive weights.

        Args:
            locations: points and levels.
            boxes: (N, R, 4) predicted boxes.
            joint: (N, K, R) class probability times objectness.
            targets: ground truth.
        """
        prior, in_box = self.center_prior(locations, targets)
        classes = targets.classes.clamp(min=0)[..., None].expand_as(prior)
        box_loss = 1 - giou(boxes[:, None], targets.boxes[:, :, None])
        likelihood = joint.gather(1, classes) * (-self.box_weight * box_loss).exp()
        weight = prior * (3 * likelihood).exp()
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
        return PositiveWeights(likelihood, weight, prior, in_box)

    def _positive_parts(
        self, locations: Locations, boxes: Tensor, joint: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the losses need of each box, (N, G) each.

        Returns:
            the box's positive loss, 0 for invalid boxes; the sum of its center prior; bool, whether
            it contains any location.
        """
        pairs = self.positive_weights(locations, boxes, joint, targets)
        # Rounding can make the weighted mean slightly larger than 1.
        mean = (pairs.weight * pairs.likelihood).sum(-1).clamp(max=1)
        # PyTorch's cross entropy limits the logarithm to -100 and keeps its gradient finite.
        loss = F.binary_cross_entropy(mean, torch.ones_like(mean), reduction="none")
        loss = torch.where(targets.valid, loss, 0)
        return loss, pairs.prior.sum(-1), pairs.in_box.any(-1)

    @torch.no_grad()
    def negative_weights(self, locations: Locations, boxes: Tensor, targets: Targets) -> Tensor:
        """Compute how negative each location is for each class.

        The weight is 1 outside the boxes of the class. Inside a box it is 1 - n, where n is
        1 / (1 - u), normalized to [0, 1] over the locations of the box, and u is the largest IoU of
        the location's predicted box with any true box. The best localized location of a box thus
        has weight 0.

        AutoAssign, arXiv 2007.03496, "Confidence Weighting", the negative weights.

        Args:
            locations: points and levels.
            boxes: (N, R, 4) predicted boxes.
            targets: ground truth.

        Returns:
            (N, K, R) in [0, 1]. Where boxes of one class overlap, it is the smallest weight.
        """
        num_images, num_locations, _ = boxes.shape
        best_iou = boxes.new_zeros(num_images, num_locations)
        for chunk in split_boxes(targets, self.chunk_size):
            overlap = iou(boxes[:, None], chunk.boxes[:, :, None])
            overlap = torch.where(chunk.valid[..., None], overlap, 0).amax(1)
            best_iou = torch.maximum(best_iou, overlap)
        f = 1 / (1 - best_iou).clamp(min=1e-12)[:, None]  # (N, 1, R)
        weights = boxes.new_ones(num_images, self.num_classes, num_locations)
        for chunk in split_boxes(targets, self.chunk_size):
            _, in_box = self.center_prior(locations, chunk)
            low = torch.where(in_box, f, torch.inf).amin(-1, keepdim=True)
            high = torch.where(in_box, f, 0).amax(-1, keepdim=True)
            normalized = (f - low + 1e-12) / (high - low + 1e-12)
            classes = chunk.classes.clamp(min=0)[..., None].expand_as(in_box)
            weights.scatter_reduce_(1, classes, torch.where(in_box, 1 - normalized, 1), "amin")
        return weights

    @staticmethod
    def _joint(predictions: Predictions) -> Tensor:
        """(N, K, R) class probability times objectness."""
        objectness = predictions.require_quality().sigmoid()
        return (predictions.logits.sigmoid() * objectness[..., None]).mT


def _negative_loss(joint: Tensor, weights: Tensor) -> Tensor:
    """Sum of m^2 * -log(1 - m), m = weights * joint, over all locations and classes (N, K, R)."""
    m = weights * joint
    return (m.square() * F.binary_cross_entropy(m, torch.zeros_like(m), reduction="none")).sum()
