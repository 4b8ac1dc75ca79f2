"""Disentangle Your Dense Object Detector (DDOD, ACM MM 2021, arXiv 2107.02963).

Shapes: N images, L levels, K classes, G boxes, R = locations of all levels. Boxes are x1y1x2y2 in
pixels of the padded input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from d2kd.targets import Targets

from .assigners import atss, contains, settle
from .atss import ATSS
from .base import Locations, Predictions
from .head import PointHead
from .losses import giou, iou, one_hot, positive_count, truth_at

__all__ = ["DDOD", "DDODHead", "DeformConv", "LevelBalance", "best_quality"]


class DeformConv(DeformConv2d):
    """A 3x3 deformable convolution (arXiv 1703.06211) with the convolution that says its offsets.

    The offsets start at zero, and it as a plain convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.offset = nn.Conv2d(in_channels, 2 * 3 * 3, 3, padding=1)
        nn.init.normal_(self.weight, std=0.01)
        for zero in (self.bias, self.offset.weight, self.offset.bias):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C_out, H, W)."""
        offset = self.offset(x)
        # torchvision's operator has no bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float(), offset.float())


class DDODHead(PointHead):
    """A `PointHead` whose towers both begin with a deformable convolution, so that each looks at
    features of its own (DDOD, spatial feature disentanglement)."""

    def make_conv(self, index: int, in_channels: int, out_channels: int) -> nn.Module:
        if index:
            return super().make_conv(index, in_channels, out_channels)
        return DeformConv(in_channels, out_channels, bias=self.conv_bias)


class LevelBalance(nn.Module):
    """Loss factors of the levels: 1 for the one that had the most positives so far, 2 for the one
    that had the fewest (DDOD, pyramid supervision disentanglement).

    `positives`, (L,) long, counts over the whole training. It is in the state dict, so that a
    resumed run goes on with the same factors; the released code starts again at zero. Each process
    counts its own images, and the first one's count is what a checkpoint holds: only the shares
    matter, and these are alike. A student that inherits its teacher's tensors does not inherit
    this one.
    """

    def __init__(self, num_levels: int):
        super().__init__()
        self.register_buffer("positives", torch.zeros(num_levels, dtype=torch.long))

    @torch.no_grad()
    def forward(self, positive: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Count, then weigh.

        Args:
            positive: (N, R) bool.
            counts: locations of each level.

        Returns:
            (R,) in [1, 2], the factor of the level that a location belongs to; 2 where all levels
            had as many positives.
        """
        self.positives += torch.stack([level.sum() for level in positive.split(counts, 1)])
        # Long integers: a float would stop counting at 2**24.
        lead = (self.positives - self.positives.amin()).float()
        factors = 2 - lead / (lead.amax() + 1e-10)
        return torch.cat([f.expand(n) for f, n in zip(factors, counts, strict=True)])


class DDOD(ATSS):
    """ATSS with an IoU branch, disentangled three times: the towers' features (`DDODHead`), the
    label assignments of classification and regression, and the supervision of the levels
    (`LevelBalance`).

    A location suits a box by q = p^(1 - alpha) * IoU^alpha, p its probability of the box's class
    and IoU that of its predicted box (DDOD, label assignment disentanglement).

    Attributes:
        guide: class logits (N, R, K) and boxes (N, R, 4) in pixels, of another detector with the
            same locations. If set, the next training step assigns boxes by them instead of by its
            own predictions, and then forgets them. In PGD (arXiv 2203.05469) the teacher guides.
    """

    def __init__(
        self, *, assigner: str = "topk", topk: int = 9, cls_alpha=0.8, box_alpha=0.6, **detector
    ):
        """
        Args:
            assigner: "topk", as in PGD's release: positive are the `topk` locations of largest
                q > 0 of all levels together, as far as the box contains their centre. "atss", as
                in DDOD's own: ATSS with q in place of the anchor's IoU.
            topk: candidates of a box; with "atss" at each level. Where there are fewer locations,
                all are candidates.
            cls_alpha, box_alpha: alpha of the assignment for the classification and for the
                regression losses. PGD uses 0.8 and 0.6, DDOD's own release 0.8 and 0.5.
            detector: see `PointDetector`; the head is a `DDODHead` or has a quality branch, too.

        Raises:
            ValueError: there is no such assigner, or an alpha is outside [0, 1].
        """
        super().__init__(quality="iou", topk=topk, **detector)
        if assigner not in ("topk", "atss"):
            raise ValueError(f"DDOD.assigner: expected 'topk' or 'atss', found {assigner!r}")
        if not (0 <= cls_alpha <= 1 and 0 <= box_alpha <= 1):
            raise ValueError(f"DDOD: expected alphas in [0, 1], found {cls_alpha}, {box_alpha}")
        self.assigner = assigner
        self.cls_alpha, self.box_alpha = cls_alpha, box_alpha
        self.cls_balance = LevelBalance(len(self.head_in_features))
        self.box_balance = LevelBalance(len(self.head_in_features))
        self.guide: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def assign(
        self,
        locations: Locations,
        predictions: Predictions,
        targets: Targets,
        inside: Tensor,
        alpha: float | None = None,
    ) -> Tensor:
        """See `PointDetector.assign`.

        Args:
            alpha: `box_alpha` gives the assignment for the regression losses; default: that for
                the classification loss.
        """
        boxes = self.decode(locations, predictions.regression)
        alpha = self.cls_alpha if alpha is None else alpha
        return self.match(locations, predictions.logits, boxes, targets, inside, alpha)

    @torch.no_grad()
    def match(
        self,
        locations: Locations,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        inside: Tensor,
        alpha: float,
    ) -> Tensor:
        """`assign` by any class logits (N, R, K) and boxes (N, R, 4)."""
        probability = logits.sigmoid().transpose(1, 2)  # (N, K, R)
        classes = targets.classes.clamp(min=0)[..., None]
        if self.assigner == "atss":

            def quality(index: Tensor) -> Tensor:
                image = torch.arange(len(index), device=index.device)[:, None, None]
                overlap = iou(boxes[image, index], targets.boxes[:, :, None])
                return probability[image, classes, index] ** (1 - alpha) * overlap**alpha

            return atss(locations, targets, inside, self.topk, quality)
        index, value = best_quality(probability, boxes, targets, inside, alpha, self.topk)
        positive = (value > 0) & contains(locations, targets.boxes, index)
        return settle(index, value, positive, boxes.shape[1])

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> dict[str, Tensor]:
        """Focal loss, GIoU loss (weight 2) and the cross entropy of the IoU branch, each divided
        by the number of positives of its assignment, see `positive_count`.

        Raises:
            ValueError: `guide` has other shapes than the own predictions.
        """
        boxes = self.decode(locations, predictions.regression)
        own = predictions.logits, boxes
        judge, self.guide = self.guide or own, None
        found, expected = ([tuple(x.shape) for x in pair] for pair in (judge, own))
        if found != expected:
            raise ValueError(
                f"DDOD.guide: expected class logits and boxes of the shapes {expected}, found "
                f"{found}. Guide with a detector of the same classes, levels and padding."
            )
        for_cls, for_box = (
            self.match(locations, *judge, targets, inside, alpha)
            for alpha in (self.cls_alpha, self.box_alpha)
        )
        classes, truth = truth_at(targets, for_cls)[1], truth_at(targets, for_box)[0]
        positive = for_box >= 0
        cls_factor = inside * self.cls_balance(for_cls >= 0, locations.counts)
        box_factor = positive * self.box_balance(positive, locations.counts)
        cls_count, box_count = positive_count(for_cls), positive_count(for_box)

        target = one_hot(classes, self.num_classes)
        focal = sigmoid_focal_loss(predictions.logits, target, alpha=0.25, gamma=2)
        overlap = F.binary_cross_entropy_with_logits(
            predictions.quality, iou(boxes.detach(), truth), reduction="none"
        )
        return {
            "loss_cls": (cls_factor * focal.sum(-1)).sum() / cls_count,
            "loss_box_reg": 2 * (box_factor * (1 - giou(boxes, truth))).sum() / box_count,
            "loss_iou": (box_factor * overlap).sum() / box_count,
        }


@torch.no_grad()
def best_quality(
    probability: Tensor,
    boxes: Tensor,
    targets: Targets,
    inside: Tensor,
    alpha: float,
    topk: int = 9,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """The locations of largest quality q = p^(1 - alpha) * IoU^alpha for each box.

    Args:
        probability: (N, K, R) of each class.
        boxes: (N, R, 4), predicted.
        targets: ground truth.
        inside: (N, R) bool, locations to choose from.
        alpha: share of the IoU.
        topk: locations of a box, S at most.
        chunk: boxes that meet all locations at once, which bounds memory.

    Returns:
        (N, G, S) long, locations; (N, G, S) their q, -1 for those that only fill up. S is `topk`
        or R if that is less.
    """
    values, indices = [], []
    classes = targets.classes.clamp(min=0)[..., None].expand(-1, -1, boxes.shape[1])
    for i in range(0, max(targets.valid.shape[1], 1), chunk):  # once even without boxes
        part = slice(i, i + chunk)
        overlap = iou(boxes[:, None], targets.boxes[:, part, None])  # (N, chunk, R)
        q = probability.gather(1, classes[:, part]) ** (1 - alpha) * overlap**alpha
        q.masked_fill_(~(inside[:, None] & targets.valid[:, part, None]), -1)
        value, index = q.topk(min(topk, boxes.shape[1]))
        values.append(value)
        indices.append(index)
    return torch.cat(indices, 1), torch.cat(values, 1)
