"""Cross-Head Knowledge Distillation (CrossKD, CVPR 2024, arXiv 2306.11369).

Shapes: N images, A anchors per cell, K classes of the teacher, R = all anchors of all levels,
M + 1 bins of a side. Boxes are x1y1x2y2 in pixels of the padded input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..detectors.gfl import quality_focal_loss
from ..detectors.losses import giou, num_positives, reduce_mean
from ..knowledge import Knowledge
from ..readers import Reader
from ..targets import Targets
from ..values import check_coefficients, check_number
from .base import LevelPair, Method, pair_levels, resize_to

__all__ = ["CrossKD"]

_TOWERS = ("cls_tower", "box_tower")


class CrossKD(Method):
    """The student's tower features pass the rest of the teacher's head and imitate its predictions.

    The output of block `block` of each of the student's two towers enters the teacher's head after
    the same block. The results are the cross-head predictions. They imitate the teacher's own
    predictions. So the gradient of this loss reaches the student's first blocks only: it cannot
    contradict the ground-truth loss in the student's last blocks and predictors. The teacher's
    weights get no gradient.

    From the paper, as known from its abstract and a secondary source: the cross-head predictions;
    the sum over all locations, divided by a normalizer; the quality focal loss for classification;
    the GIoU loss for heads that regress boxes, and the KL divergence for heads that regress a
    distribution for each side (GFL); block 3 of 4.

    Terms:

    - "classification": `|p' - p|^gamma * BCE(p', p)`, summed over classes and locations and
      divided by the student's `num_positives`. p' is the probability by the cross-head, p the
      teacher's. Gamma and the divisor are from the released code.
    - "regression": the distance of each location's box, weighted by the teacher's best class
      probability there. The weight is from the released code. The distance is 1 - GIoU of the
      decoded boxes, and the sum is divided by the same `num_positives` (released code for
      RetinaNet and ATSS; for FCOS it divides by the sum of the centerness). For distributions it is
      `KL(teacher || cross-head)`, summed over the four sides, and the sum is divided by the sum of
      the weights (released code for GFL).

    What differs from the released code. It gives each channel of the student's features the mean
    and the deviation of the teacher's channel first; this is left out, because we do not know it
    from the paper. It uses the IoU loss for FCOS, and a further term for the centerness of ATSS;
    here FCOS has the GIoU loss, as in the paper, and no detector has that term. Three details are
    ours: where the towers differ in width, a 1x1 convolution and a ReLU bring the student's
    features to the teacher's width, one pair for each tower; teacher boxes without an area are left
    out; so are locations outside the image, if the teacher's own losses leave them out.

    Both heads need two towers and the same strides. Student and teacher may differ in anchors and
    box coding: only the teacher's are used.

    Args:
        block: number of the block after which the heads are crossed, from 1. The released code for
            FCOS uses 2.
        classification, regression: coefficients of the two terms. A term whose coefficient is 0 is
            left out. Released: 1 and 1; for FCOS 0.4 and 0.75.
        gamma: exponent of the factor in the quality focal loss, >= 1.
        shared: see `Method`.

    Raises:
        ValueError: an argument is out of its range.
    """

    reader: Reader
    """The student's reader, set by `setup`."""

    def __init__(
        self,
        *,
        block: int = 3,
        classification: float = 1.0,
        regression: float = 1.0,
        gamma: float = 1.0,
        **shared,
    ):
        super().__init__(**shared)
        self.block = check_number("CrossKD.block", block, least=1, whole=True)
        self.gamma = check_number("CrossKD.gamma", gamma, least=1)
        check_coefficients(
            "CrossKD", some_positive=True, classification=classification, regression=regression
        )
        self.classification, self.regression = classification, regression
        self.taps = tuple(f"{tower}.{self.block}" for tower in _TOWERS)
        self.needs = frozenset({"logits", "boxes", *self.taps})
        self.adapters = nn.ModuleDict()
        self.pairs: list[LevelPair] = []

    @property
    def teacher_needs(self) -> frozenset[str]:
        return frozenset({"logits", "boxes"})

    def setup(self, student: Reader, teacher: Reader) -> None:
        for role, reader in (("student", student), ("teacher", teacher)):
            if not reader.provides.issuperset(self.taps):
                raise ValueError(
                    f"CrossKD: expected a {role} whose head has two towers of at least "
                    f"{self.block} blocks each (CrossKD.block), found {reader.name} with "
                    f"{', '.join(reader.taps) or 'no towers'}. Lower CrossKD.block, or use a "
                    f"feature method such as FGD."
                )
        super().setup(student, teacher)
        self.pairs = pair_levels(
            None,
            student,
            teacher,
            "CrossKD",
            student_levels=student.head_in_features,
            teacher_levels=teacher.head_in_features,
            require_all=True,
            fix="Give both the same head_in_features.",
        )
        for tower, tap in zip(_TOWERS, self.taps, strict=True):
            widths = student.taps[tap].channels, teacher.taps[tap].channels
            # The teacher's next block expects the output of an activation.
            self.adapters[tower] = (
                nn.Identity()
                if widths[0] == widths[1]
                else nn.Sequential(nn.Conv2d(*widths, kernel_size=1), nn.ReLU())
            )
        self.reader = student
        # Plain values, so that a copy of this module does not hold the teacher.
        self.num_classes, self.padding = teacher.num_logits, teacher.padding
        reg_max = getattr(teacher.detector, "reg_max", None)
        self.bins = None if reg_max is None else reg_max + 1

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        """
        Returns:
            "classification" and "regression", scalars.
        """
        cross = self.cross(student, teacher)
        count = num_positives(self.reader.assign(student, targets))
        scores = {level: x.sigmoid() for level, x in teacher.logits.items()}
        counted = self._counted(teacher, targets)
        terms = {}
        if self.classification:
            focal = {
                level: quality_focal_loss(x, scores[level], self.gamma)
                for level, x in cross.logits.items()
            }
            total = (counted * _per_anchor(focal, self.num_classes, torch.sum)).sum()
            terms["classification"] = self.classification * total / count
        if self.regression:
            weight = counted * _per_anchor(scores, self.num_classes, torch.amax)
            if self.bins is None:
                sides = teacher.boxes[..., 2:] - teacher.boxes[..., :2]
                weight = weight * (sides[..., 0] * sides[..., 1] > 1e-6)
                distance = 1 - giou(cross.boxes, teacher.boxes)
                divisor = count
            else:
                distance = _side_divergence(cross.deltas, teacher.deltas, self.bins)
                divisor = reduce_mean(weight.sum()).clamp(min=1e-6)
            terms["regression"] = self.regression * (weight * distance).sum() / divisor
        return terms

    def cross(self, student: Knowledge, teacher: Knowledge) -> Knowledge:
        """The cross-head predictions: logits and, unless the teacher has distributions, boxes.

        Gradients flow to the student's tower maps and to the adapters.
        """
        towers = [
            {
                pair.teacher: resize_to(
                    self.adapters[tower](student.taps[tap][pair.student]),
                    teacher.logits[pair.teacher],
                )
                for pair in self.pairs
            }
            for tower, tap in zip(_TOWERS, self.taps, strict=True)
        ]
        needs = ("logits", "boxes") if self.bins is None else ("logits",)
        return teacher.run_head_from(self.block, *towers, needs=needs)

    def _counted(self, teacher: Knowledge, targets: Targets) -> Tensor:
        """(N, R), 1 at locations that belong to the image and 0 at others."""
        centers = teacher.centers
        if not self.padding:
            return centers.new_ones(len(targets.sizes), len(centers))
        limits = -(-targets.sizes.flip(1) // self.padding) * self.padding
        return (centers < limits[:, None]).all(-1).to(centers.dtype)


def _per_anchor(maps: Mapping[str, Tensor], dims: int, reduce: Callable) -> Tensor:
    """Level name -> (N, A*dims, H, W) to (N, R): `reduce`, such as torch.sum, over the dims."""
    levels = [reduce(x.unflatten(1, (-1, dims)), 2) for x in maps.values()]
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in levels], 1)


def _side_divergence(
    cross: Mapping[str, Tensor], teacher: Mapping[str, Tensor], bins: int
) -> Tensor:
    """(N, R), KL(teacher || cross-head) of the softmax over a side's bins, summed over the sides.

    Args:
        cross, teacher: level name -> (N, 4*bins, H, W).
    """
    levels = []
    for level, x in cross.items():
        log_q, log_p = (y.unflatten(1, (4, bins)).log_softmax(2) for y in (x, teacher[level]))
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True)
        levels.append(divergence.sum((1, 2)).flatten(1))
    return torch.cat(levels, 1)
