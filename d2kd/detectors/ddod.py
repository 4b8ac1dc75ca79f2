"""DDOD: Disentangle Your Dense Object Detector (ACM MM 2021, arXiv 2107.02963).

The paper disentangles three things. Where to find them: the features of the two towers in
`DDODHead`, the label assignments of classification and regression in `DDOD.match`, and the
supervision of the pyramid's levels in `LevelBalance`.

Shapes: N images, L levels, K classes, G boxes per image, R locations of all levels, S candidates
per box. Boxes are x1y1x2y2 in pixels of the padded input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from d2kd.targets import Targets

from .assigners import assign_atss, in_box_mask, resolve_conflicts
from .atss import ATSS
from .head import PointHead
from .losses import gather_targets, giou, iou, num_positives, one_hot
from .structures import Locations, Predictions

__all__ = ["DDOD", "DDODHead", "DeformConv2dPack", "LevelBalance", "topk_candidates"]


class DeformConv2dPack(DeformConv2d):
    """A 3x3 deformable convolution (arXiv 1703.06211) that predicts its own offsets.

    Detectron2's and torchvision's layers take the offsets as an input. This layer contains another
    convolution that computes them, like the layer of the same name in mmcv. The offsets start at
    zero, so that a new layer acts as a plain convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        """
        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            bias: whether the deformable convolution has a bias.
        """
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        # Two offsets, dy and dx, for each of the 3 x 3 taps.
        self.offset = nn.Conv2d(in_channels, 2 * 3 * 3, 3, padding=1)
        nn.init.normal_(self.weight, std=0.01)
        for zero in (self.bias, self.offset.weight, self.offset.bias):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C_out, H, W)."""
        offset = self.offset(x)
        # torchvision's operator does not support bfloat16, so that it runs in float32.
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float(), offset.float())


class DDODHead(PointHead):
    """A `PointHead` whose two towers both begin with a deformable convolution.

    Each tower has its own offsets and can thus look at other places than the other tower (DDOD,
    spatial feature disentanglement).
    """

    def make_conv(self, index: int, in_channels: int, out_channels: int) -> nn.Module:
        """See `PointHead.make_conv`."""
        if index:
            return super().make_conv(index, in_channels, out_channels)
        return DeformConv2dPack(in_channels, out_channels, bias=self.conv_bias)


class LevelBalance(nn.Module):
    """Weight the losses of each level by how many positives the level had so far.

    The factor is 1 for the level with the most positives and 2 for the level with the fewest (DDOD,
    pyramid supervision disentanglement).

    The buffer `positives`, (L,) long, counts over the whole training. It is in the state dict, so
    that a resumed run continues with the same factors; the released code starts again at zero. Each
    process counts its own images, and a checkpoint holds the count of the first process. Only the
    proportions matter, and they are similar in all processes. A student that inherits its teacher's
    weights does not inherit this buffer.
    """

    positives: Tensor

    def __init__(self, num_levels: int):
        """
        Args:
            num_levels: L.
        """
        super().__init__()
        self.register_buffer("positives", torch.zeros(num_levels, dtype=torch.long))

    @torch.no_grad()
    def forward(self, positive: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Add this step's positives to the counts, then compute the factors.

        Args:
            positive: (N, R) bool.
            counts: number of locations of each level.

        Returns:
            (R,) in [1, 2], the factor of the level that a location belongs to. It is 2 everywhere
            if all levels had equally many positives.
        """
        self.positives += torch.stack([level.sum() for level in positive.split(counts, 1)])
        # The counts are long integers, because a float32 would stop counting at 2**24.
        surplus = (self.positives - self.positives.amin()).float()
        factors = 2 - surplus / (surplus.amax() + 1e-10)
        return torch.cat([f.expand(n) for f, n in zip(factors, counts, strict=True)])


class DDOD(ATSS):
    """ATSS with an IoU branch and DDOD's three disentanglements, see the head of this module.

    The quality of a location for a box is q = p^(1 - alpha) * IoU^alpha. Here, p is the predicted
    probability of the box's class, and IoU compares the predicted box with the true one (DDOD,
    label assignment disentanglement). Classification and regression use different alphas, and thus
    have different positives.

    Attributes:
        guide: class logits (N, R, K) and boxes (N, R, 4) in pixels of another detector with the
            same locations, or None. If they are set, the next training step assigns boxes by them
            instead of by its own predictions, and then sets `guide` back to None. In PGD (arXiv
            2203.05469), the teacher is the guide.
    """

    def __init__(
        self,
        *,
        assigner: str = "topk",
        topk: int = 9,
        cls_alpha: float = 0.8,
        box_alpha: float = 0.6,
        **detector: Any,
    ):
        """
        Args:
            assigner: "topk" is the form of PGD's release. The candidates of a box are the `topk`
                locations with the largest q of all levels together. Those with q > 0 whose center
                lies inside the box are positive. "atss" is the form of DDOD's own release: ATSS
                with q in place of the anchor's IoU.
            topk: candidates of a box; with "atss" at each level. If there are fewer locations, all
                are candidates.
            cls_alpha: alpha of the assignment for the classification loss. PGD and DDOD's own
                release use 0.8.
            box_alpha: alpha of the assignment for the regression losses. PGD uses 0.6, DDOD's own
                release 0.5.
            detector: see `PointDetector`. The head is a `DDODHead`, or another one with a quality
                branch.

        Raises:
            ValueError: `assigner` or an alpha has an impossible value, or the head has no quality
                branch.
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
        in_image: Tensor,
        alpha: float | None = None,
    ) -> Tensor:
        """See `PointDetector.assign`.

        Args:
            alpha: the default, `cls_alpha`, gives the assignment for the classification loss. Pass
                `box_alpha` to get the assignment for the regression losses.
        """
        boxes = self.decode(locations, predictions.regression)
        alpha = self.cls_alpha if alpha is None else alpha
        return self.match(locations, predictions.logits, boxes, targets, in_image, alpha)

    @torch.no_grad()
    def match(
        self,
        locations: Locations,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        in_image: Tensor,
        alpha: float,
    ) -> Tensor:
        """Like `assign`, but by any class logits and decoded boxes, for example the guide's.

        Args:
            logits: (N, R, K) class logits.
            boxes: (N, R, 4) decoded boxes.
            alpha: exponent of the IoU in q, see the class.
        """
        probability = logits.sigmoid().transpose(1, 2)  # (N, K, R)
        classes = targets.classes.clamp(min=0)[..., None]
        if self.assigner == "atss":

            def quality(indices: Tensor) -> Tensor:
                image = torch.arange(len(indices), device=indices.device)[:, None, None]
                overlap = iou(boxes[image, indices], targets.boxes[:, :, None])
                return probability[image, classes, indices] ** (1 - alpha) * overlap**alpha

            return assign_atss(locations, targets, in_image, self.topk, quality)
        indices, q = topk_candidates(probability, boxes, targets, in_image, alpha, self.topk)
        positive = (q > 0) & in_box_mask(locations, targets.boxes, indices)
        return resolve_conflicts(indices, q, positive, boxes.shape[1])

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> dict[str, Tensor]:
        """See `PointDetector.losses`.

        There are three losses: the focal loss of the classes, the GIoU loss of the boxes (weight 2)
        and the binary cross entropy of the IoU branch. Each is multiplied by the factors of its
        levels (`LevelBalance`) and divided by the number of positives of its own assignment
        (`num_positives`).

        Raises:
            ValueError: `guide` has other shapes than the detector's own predictions.
        """
        boxes = self.decode(locations, predictions.regression)
        own = predictions.logits, boxes
        assign_by, self.guide = self.guide or own, None
        found, expected = ([tuple(x.shape) for x in pair] for pair in (assign_by, own))
        if found != expected:
            raise ValueError(
                f"DDOD.guide: expected class logits and boxes of the shapes {expected}, found "
                f"{found}. Guide with a detector of the same classes, levels and padding."
            )
        cls_matched, box_matched = (
            self.match(locations, *assign_by, targets, in_image, alpha)
            for alpha in (self.cls_alpha, self.box_alpha)
        )
        true_classes = gather_targets(targets, cls_matched)[1]
        true_boxes = gather_targets(targets, box_matched)[0]
        positive = box_matched >= 0
        cls_factor = in_image * self.cls_balance(cls_matched >= 0, locations.counts)
        box_factor = positive * self.box_balance(positive, locations.counts)
        cls_count, box_count = num_positives(cls_matched), num_positives(box_matched)

        target = one_hot(true_classes, self.num_classes)
        focal = sigmoid_focal_loss(predictions.logits, target, alpha=0.25, gamma=2)
        entropy = F.binary_cross_entropy_with_logits(
            predictions.require_quality(), iou(boxes.detach(), true_boxes), reduction="none"
        )
        return {
            "loss_cls": (cls_factor * focal.sum(-1)).sum() / cls_count,
            "loss_box_reg": 2 * (box_factor * (1 - giou(boxes, true_boxes))).sum() / box_count,
            "loss_iou": (box_factor * entropy).sum() / box_count,
        }


@torch.no_grad()
def topk_candidates(
    probability: Tensor,
    boxes: Tensor,
    targets: Targets,
    in_image: Tensor,
    alpha: float,
    topk: int = 9,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Choose the locations with the largest quality q = p^(1 - alpha) * IoU^alpha for each box.

    Args:
        probability: (N, K, R) predicted probability p of each class.
        boxes: (N, R, 4) predicted boxes.
        targets: ground truth.
        in_image: (N, R) bool, the locations that may be chosen.
        alpha: exponent of the IoU.
        topk: the number of locations to choose for a box.
        chunk_size: true boxes that are compared with all locations at the same time. It bounds the
            memory and does not change the result.

    Returns:
        (N, G, S) long, locations; (N, G, S) their q, -1 for entries that only fill the tensor. S is
        `topk`, or R if there are fewer locations.
    """
    values, indices = [], []
    classes = targets.classes.clamp(min=0)[..., None].expand(-1, -1, boxes.shape[1])
    # The loop runs once even without boxes, so that there are (empty) tensors to concatenate.
    for i in range(0, max(targets.valid.shape[1], 1), chunk_size):
        chunk = slice(i, i + chunk_size)
        overlap = iou(boxes[:, None], targets.boxes[:, chunk, None])  # (N, chunk_size, R)
        q = probability.gather(1, classes[:, chunk]) ** (1 - alpha) * overlap**alpha
        q.masked_fill_(~(in_image[:, None] & targets.valid[:, chunk, None]), -1)
        value, index = q.topk(min(topk, boxes.shape[1]))
        values.append(value)
        indices.append(index)
    return torch.cat(indices, 1), torch.cat(values, 1)
