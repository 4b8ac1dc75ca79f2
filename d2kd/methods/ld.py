"""Localization Distillation (LD), CVPR 2022, arXiv 2102.12252.

Shapes: N images, R locations of all levels, G boxes, K classes; M is `reg_max`, so that a side has
M + 1 bins. Boxes are x1y1x2y2 in pixels of the padded input.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn
from torchvision.ops import box_iou, distance_box_iou

from ..detectors.assigners import atss_threshold, nearest_candidates
from ..detectors.base import Locations
from ..detectors.losses import iou, num_positives
from ..knowledge import Knowledge
from ..readers import Reader, check_same_anchors
from ..targets import Targets
from ..values import check_coefficients, check_number
from .base import Method

__all__ = ["LD", "divergence", "valuable_region"]


class LD(Method):
    """The student's distribution of each side of a box imitates the teacher's distribution.

    For detectors whose head regresses a distribution for each side (GFL). The divergence of a
    location is the sum of `divergence` over its four sides.

    Terms; a term whose coefficient is 0 is left out:

    - "main": the sum of the divergence over the positives of the student's own label assignment,
      divided by 4. Each positive is weighted by the student's best class probability, without
      gradient.
    - "valuable": the sum of the divergence over the `valuable_region` around the positives, divided
      by 16. Each location is weighted by the IoU of anchor and box.
    - "classification": the divergence of the softmax over the K class logits at the positives,
      divided by the `num_positives` of the student's own classification loss. Weight, temperature
      and positions are from the released code. The softmax over classes, the mean over classes and
      the divisor are our reading.

    As released, "main" and "valuable" are sums over the images of a GPU. Unlike the student's own
    box losses, they are not divided by a number of boxes, so they grow with the images per GPU. The
    authors recommend 2 images. With more, use a smaller `weight`, or `balance`.

    Args:
        main, valuable, classification: coefficients of the three terms.
        tau: temperature of the softmax over bins, > 0.
        class_tau: temperature of the softmax over classes, > 0.
        uncertainty: module, such as `MCDropout`, that changes the teacher's distribution logits of
            each level, (N, 4 * (M + 1), H, W). The class logits are not changed. UET (arXiv
            2406.06999) reports LD with dropout, but not its position. Inferred: on the head's
            logits, before the softmax. `MCDropout(combine="sum")` doubles the logits, which makes
            the softmax as sharp as half the temperature would; combine="mean" does not.
        shared: see `Method`.

    Raises:
        ValueError: an argument has an impossible value.
    """

    needs = frozenset({"logits", "boxes"})
    teacher_needs = frozenset({"logits"})
    reader: Reader
    """The student's reader, set by `setup`."""

    def __init__(
        self,
        *,
        main: float = 0.25,
        valuable: float = 0.25,
        classification: float = 10.0,
        tau: float = 10.0,
        class_tau: float = 2.0,
        uncertainty: nn.Module | None = None,
        **shared,
    ):
        super().__init__(**shared)
        check_coefficients(
            "LD", some_positive=True, main=main, valuable=valuable, classification=classification
        )
        self.main, self.valuable, self.classification = main, valuable, classification
        self.tau = check_number("LD.tau", tau, above=0)
        self.class_tau = check_number("LD.class_tau", class_tau, above=0)
        self.uncertainty = uncertainty or nn.Identity()

    def setup(self, student: Reader, teacher: Reader) -> None:
        for role, reader in (("student", student), ("teacher", teacher)):
            if not hasattr(reader.detector, "reg_max"):
                raise ValueError(
                    f"LD: expected a {role} that regresses a distribution per side (GFL), found "
                    f"{reader.name}. Use a feature method such as FGD."
                )
        super().setup(student, teacher)
        fields = [
            ("number of bins per side", [r.detector.reg_max + 1 for r in (student, teacher)], "")
        ]
        if self.classification:
            classes = [r.num_classes for r in (student, teacher)]
            fields.append(("number of classes", classes, ", or set LD.classification=0"))
        for what, (s, t), way_out in fields:
            if s != t:
                raise ValueError(
                    f"LD: expected student ({student.name}) and teacher ({teacher.name}) with the "
                    f"same {what}, found {s} and {t}. Give both the same{way_out}, or use a "
                    f"feature method such as FGD."
                )
        check_same_anchors(student, teacher, "LD")
        self.reader = student

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        terms = {}
        matched = self.reader.assign(student, targets)
        if self.main or self.valuable:
            uncertain = {level: self.uncertainty(x).detach() for level, x in teacher.deltas.items()}
            sides = divergence(self._sides(student.deltas), self._sides(uncertain), self.tau).sum(
                -1
            )
        if self.main:
            best = {level: x.detach().amax(1, True) for level, x in student.logits.items()}
            score = _flatten(best, 1).squeeze(-1).sigmoid()
            weight = torch.where(matched >= 0, score, 0)
            terms["main"] = self.main * (weight * sides).sum() / 4
        if self.valuable:
            detector, maps = self.reader.detector, list(student.logits.values())
            locations = detector.locations(maps)
            inside = detector.in_image_mask(locations, targets.sizes, maps)
            weight = valuable_region(locations, targets, inside)
            terms["valuable"] = self.valuable * (weight * sides).sum() / 16
        if self.classification:
            s, t = (_flatten(x.logits, self.reader.num_classes) for x in (student, teacher))
            total = ((matched >= 0) * divergence(s, t, self.class_tau)).sum()
            terms["classification"] = self.classification * total / num_positives(matched)
        return terms

    def _sides(self, deltas: Mapping[str, Tensor]) -> Tensor:
        """Level name -> (N, 4 * (M + 1), H, W) to (N, R, 4, M + 1)."""
        bins = self.reader.detector.reg_max + 1
        return _flatten(deltas, 4 * bins).unflatten(-1, (4, bins))


def divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau^2 KL(teacher || student) of softmax(logits / tau), averaged over the bins.

    This is the paper's LD loss. The mean in place of the sum over bins is from the released code.

    Args:
        student, teacher: (..., B) logits of B bins.

    Returns:
        (...) at least 0, except for rounding.
    """
    log_q, log_p = ((logits / tau).log_softmax(-1) for logits in (student, teacher))
    return tau**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).mean(-1)


@torch.no_grad()
def valuable_region(
    locations: Locations,
    targets: Targets,
    inside: Tensor,
    share: float = 0.25,
    pairs: int = 2**22,
) -> Tensor:
    """The valuable localization region, and the IoU that weights it.

    A location belongs to the region of a box if the DIoU of its anchor and the box is in
    [share * t, t). The threshold t is defined as in ATSS: mean plus standard deviation of the IoUs
    of the box with the 9 nearest anchors of each level. A box that overlaps none of these anchors
    has no region. A location can be in the region and be positive, too, for this or another box.

    Args:
        locations: anchors and levels.
        targets: ground truth.
        inside: (N, R) bool, the locations that count.
        share: the region begins at this fraction of t.
        pairs: how many pairs of box and location to look at at a time. This bounds the memory.

    Returns:
        (N, R) in [0, 1]: IoU of anchor and box; with several boxes, the largest IoU. 0 outside the
        region.
    """
    n, r = inside.shape
    index, valid = nearest_candidates(locations, targets, inside)
    overlaps = iou(locations.anchors[index], targets.boxes[:, :, None])
    thresholds = atss_threshold(overlaps, valid)[..., None]  # 0 in rows without a box: no region
    weight = locations.anchors.new_zeros(n, r)
    step = max(1, pairs // (n * r))
    for i in range(0, thresholds.shape[1], step):
        boxes, t = targets.boxes[:, i : i + step], thresholds[:, i : i + step]
        diou, overlap = (
            measure(boxes.flatten(0, 1), locations.anchors).unflatten(0, (n, -1))
            for measure in (distance_box_iou, box_iou)
        )
        overlap = torch.where((diou >= share * t) & (diou < t), overlap, 0)
        weight = torch.maximum(weight, overlap.amax(1))
    return weight * inside


def _flatten(maps: Mapping[str, Tensor], dims: int) -> Tensor:
    """Flatten level name -> (N, dims, H, W), in the head's order, to (N, R, dims)."""
    return torch.cat([permute_to_N_HWA_K(x, dims) for x in maps.values()], 1)
