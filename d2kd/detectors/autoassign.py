"""AutoAssign: Differentiable Label Assignment for Dense Object Detection (arXiv 2007.03496).

Shapes: N images, K classes, G boxes, R = locations of all levels. Boxes are x1y1x2y2 in pixels of
the padded input. Pairs of boxes and locations are (N, G, R), for a few boxes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2kd.targets import Targets

from .assigners import settle
from .base import Locations, PointDetector, Predictions
from .losses import giou, iou, rank_mean

__all__ = ["AutoAssign", "CenterPrior", "chunks"]


class CenterPrior(nn.Module):
    """How likely a location is to be positive by its distance to a box's centre: a Gaussian for
    each class, in strides of the location's level (AutoAssign, center weighting).

    `mu` and `sd`, (K, 2), x and y, are learned.
    """

    def __init__(self, num_classes: int, force_topk: bool = False, topk: int = 9):
        """
        Args:
            num_classes: K.
            force_topk: whether a box that contains no location takes the `topk` nearest, by the
                prior. The released configs leave it off; such a box then adds the constant 100 to
                its positive loss, without gradient.
            topk: locations of such a box.
        """
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(num_classes, 2))
        self.sd = nn.Parameter(torch.ones(num_classes, 2))
        self.force_topk, self.topk = force_topk, topk

    def forward(self, locations: Locations, targets: Targets) -> tuple[Tensor, Tensor]:
        """
        Returns:
            (N, G, R) prior in [0, 1], 0 for a location that the box does not contain; (N, G, R)
            bool, whether it does, strictly.
        """
        boxes, kind = targets.boxes[..., None], targets.classes.clamp(min=0)
        within, exponent = targets.valid[..., None], 0
        for axis, points in enumerate(locations.centers.unbind(-1)):
            low, high = boxes[:, :, axis], boxes[:, :, axis + 2]  # (N, G, 1)
            within = within & (points > low) & (points < high)
            away = (points - (low + high) / 2) / locations.strides - self.mu[kind, axis, None]
            exponent = exponent - away.square() / (2 * self.sd[kind, axis, None].square())
        if self.force_topk:
            nearest = exponent.detach().topk(min(self.topk, exponent.shape[-1]))[1]
            forced = torch.zeros_like(within).scatter(-1, nearest, True)
            within = within | (forced & targets.valid[..., None] & ~within.any(-1, keepdim=True))
        return torch.where(within, exponent.exp(), 0), within


def chunks(targets: Targets, size: int) -> Iterator[Targets]:
    """The same images with at most `size` of their boxes at a time.

    Without boxes, one that is not valid, so that the losses keep their graph.
    """
    boxes, classes, valid = targets.boxes, targets.classes, targets.valid
    if not valid.shape[1]:
        boxes, classes, valid = (
            F.pad(boxes, (0, 0, 0, 1)),
            F.pad(classes, (0, 1)),
            F.pad(valid, (0, 1)),
        )
    for parts in zip(*(x.split(size, 1) for x in (boxes, classes, valid)), strict=True):
        yield replace(targets, **dict(zip(("boxes", "classes", "valid"), parts, strict=True)))


class AutoAssign(PointDetector):
    """A location's predictions and a learned centre prior say how positive it is for each box that
    contains it, and how negative it is for each class.

    The head is a `PointHead` with `conv_bias=True, prior_prob=0.02, box_bias=4.0`. Its quality
    branch is the objectness, which is trained through its product with the class probability only.
    Its regression, after a ReLU, is the distance to left, top, right and bottom side in strides.

    One deliberate departure from the released code: where boxes of one class overlap, a location's
    negative weight for the class is the smallest that one of the boxes gives. The release keeps
    that of the box written last, which depends on the order of the boxes, and on a GPU on chance.

    As in the release, a batch without any box has a large negative loss: a sum over all locations
    that nothing normalises. Detectron2's data loader leaves images without boxes out by default.
    """

    anchor_scale = 1
    padding = 0
    rank_by_quality = True

    pos_weight = 0.25
    neg_weight = 0.75
    center_weight = 0.75
    box_weight = 5.0
    """Of 1 - GIoU, in the exponent of the localisation's likelihood."""
    num_assigned = 9
    """Locations that `assign` gives a box."""
    chunk = 32
    """Boxes of an image that meet all locations at once, which bounds memory."""

    def __init__(self, *, force_topk: bool = False, **detector):
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
        low, high = (regression.relu() * locations.strides[:, None]).split(2, -1)
        return torch.cat([locations.centers - low, locations.centers + high], -1)

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> dict[str, Tensor]:
        """See `PointDetector.losses`. All locations take part, also those of the padding."""
        boxes, joint = self.decode(locations, predictions.regression), self._joint(predictions)
        parts = list(chunks(targets, self.chunk))
        if len(parts) == 1:
            bags = [self._bag(locations, boxes, joint, parts[0])]
        else:
            # What pairs of many boxes and all locations need in the backward pass is computed
            # again there instead of kept.
            again = dict(use_reentrant=False, preserve_rng_state=False)
            bags = [checkpoint(self._bag, locations, boxes, joint, x, **again) for x in parts]
        surprise, mass, hit = (torch.cat(x, 1) for x in zip(*bags, strict=True))
        mass, hit = mass.sum(1), hit.any(1)
        counts = targets.valid.sum(1).float()
        center = torch.where(hit, counts / mass.clamp(min=1e-12), 0 * mass)
        weights = self.negative_weights(locations, boxes, targets)
        negative = _negative(joint, weights) / rank_mean(mass.sum()).clamp(min=1)
        return {
            "loss_pos": self.pos_weight * surprise.sum() / rank_mean(counts.sum()).clamp(min=1),
            "loss_neg": self.neg_weight * negative,
            "loss_center": self.center_weight * center.mean(),
        }

    @torch.no_grad()
    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> Tensor:
        """See `PointDetector.assign`.

        AutoAssign itself has no positives, only weights. For methods that want some: of the
        locations that a box contains, the `num_assigned` of largest positive weight; one that
        several boxes claim goes to the larger weight. Neither the paper nor a release says so; 9
        is what the release's `force_topk` takes.
        """
        boxes, joint = self.decode(locations, predictions.regression), self._joint(predictions)
        values, indices = [], []
        for part in chunks(targets, self.chunk):
            _, weight, _, within = self.positive_weights(locations, boxes, joint, part)
            weight = torch.where(within, weight, -1)
            value, index = weight.topk(min(self.num_assigned, weight.shape[-1]))
            values.append(value)
            indices.append(index)
        index, value = torch.cat(indices, 1), torch.cat(values, 1)
        return settle(index, value, value >= 0, boxes.shape[1])

    def positive_weights(
        self, locations: Locations, boxes: Tensor, joint: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Likelihoods and weights of all pairs (AutoAssign, center and confidence weighting).

        Args:
            boxes: (N, R, 4), predicted.
            joint: (N, K, R), class probability times objectness.

        Returns:
            (N, G, R) each: likelihood P, positive weight W, which sums to 1 over a box's locations,
            centre prior, and whether the box contains the location.
        """
        prior, within = self.center_prior(locations, targets)
        kind = targets.classes.clamp(min=0)[..., None].expand_as(prior)
        distance = 1 - giou(boxes[:, None], targets.boxes[:, :, None])
        likelihood = joint.gather(1, kind) * (-self.box_weight * distance).exp()
        weight = prior * (3 * likelihood).exp()
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
        return likelihood, weight, prior, within

    def _bag(
        self, locations: Locations, boxes: Tensor, joint: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, G) each: a box's positive loss, mass of its prior, whether it contains a location."""
        likelihood, weight, prior, within = self.positive_weights(locations, boxes, joint, targets)
        mean = (weight * likelihood).sum(-1).clamp(max=1)  # of what rounding adds
        # This cross entropy floors the log at -100, and its derivative too.
        surprise = F.binary_cross_entropy(mean, torch.ones_like(mean), reduction="none")
        return torch.where(targets.valid, surprise, 0), prior.sum(-1), within.any(-1)

    @torch.no_grad()
    def negative_weights(self, locations: Locations, boxes: Tensor, targets: Targets) -> Tensor:
        """How negative each location is for each class (AutoAssign, confidence weighting).

        1, but less in a box of the class, and 0 for the location there that localises best, by
        the largest IoU of its prediction with any box.

        Args:
            boxes: (N, R, 4), predicted.

        Returns:
            (N, K, R) in [0, 1], the smallest over the boxes of a class.
        """
        n, r, _ = boxes.shape
        best = boxes.new_zeros(n, r)
        for part in chunks(targets, self.chunk):
            overlap = iou(boxes[:, None], part.boxes[:, :, None])
            best = torch.maximum(best, torch.where(part.valid[..., None], overlap, 0).amax(1))
        f = 1 / (1 - best).clamp(min=1e-12)[:, None]  # (N, 1, R)
        weights = boxes.new_ones(n, self.num_classes, r)
        for part in chunks(targets, self.chunk):
            _, within = self.center_prior(locations, part)
            low = torch.where(within, f, torch.inf).amin(-1, keepdim=True)
            high = torch.where(within, f, 0).amax(-1, keepdim=True)
            share = (f - low + 1e-12) / (high - low + 1e-12)
            kind = part.classes.clamp(min=0)[..., None].expand_as(within)
            weights.scatter_reduce_(1, kind, torch.where(within, 1 - share, 1), "amin")
        return weights

    @staticmethod
    def _joint(predictions: Predictions) -> Tensor:
        """(N, K, R) class probability times objectness."""
        return (predictions.logits.sigmoid() * predictions.quality.sigmoid()[..., None]).mT


def _negative(joint: Tensor, weights: Tensor) -> Tensor:
    """Sum of m^2 * -log(1 - m), m = weights * joint, over all locations and classes (N, K, R)."""
    m = weights * joint
    return (m.square() * F.binary_cross_entropy(m, torch.zeros_like(m), reduction="none")).sum()
