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
from .base import Method

__all__ = ["LD", "divergence", "valuable_region"]


class LD(Method):
    """The student's distribution of each side of a box follows the teacher's.

    For detectors whose head regresses a distribution per side (GFL). The `divergence` of a
    location is the sum over its four sides.

    Terms; one whose coefficient is 0 is left out:

    - "main": positives of the student's own label assignment, weighted by the student's best class
      probability (without gradient); their sum divided by 4.
    - "valuable": the `valuable_region` around them, weighted by the IoU of anchor and box; its sum
      divided by 16.
    - "classification": the same divergence of the softmax over the K class logits at the positives,
      divided by the `num_positives` of the student's own classification loss. Weight, temperature
      and place are the release's; the softmax over classes, the mean over them and the divisor are
      our reading.

    As released, "main" and "valuable" are sums over the images of a GPU, which no number of boxes
    divides, unlike the student's own box losses: they grow with the images per GPU. The authors
    recommend 2; with more, a smaller `weight` or `balance` makes up for it.

    Args:
        main, valuable, classification: coefficients of the three terms.
        tau: temperature of the softmax over bins.
        class_tau: temperature of the softmax over classes.
        uncertainty: module from the teacher's distribution logits, (N, 4 * (M + 1), H, W) of each
            level, to the same, such as `MCDropout`; the class logits stay as they are. UET (arXiv
            2406.06999) reports LD with dropout, but not where it sits: on the head's logits, before
            the softmax, is inferred. A sum that doubles the logits makes the softmax sharper, as
            half the temperature would; `MCDropout(combine="mean")` does not.
        shared: see `Method`.

    Raises:
        ValueError: an argument has an impossible value.
    """

    needs = frozenset({"logits", "boxes"})
    teacher_needs = frozenset({"logits"})

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
        for name, value in (("tau", tau), ("class_tau", class_tau)):
            if value <= 0:
                raise ValueError(f"LD.{name}: expected > 0, found {value}")
        coefficients = (main, valuable, classification)
        if min(coefficients) < 0 or max(coefficients) == 0:
            raise ValueError(
                f"LD.main, .valuable and .classification: expected all >= 0 and one > 0, found "
                f"{main}, {valuable} and {classification}"
            )
        self.main, self.valuable, self.classification = coefficients
        self.tau, self.class_tau = tau, class_tau
        self.uncertainty = uncertainty or nn.Identity()
        self.reader: Reader | None = None

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
    """tau^2 KL(teacher || student) of softmax(logits / tau), averaged over the entries.

    The paper's LD loss; the mean in place of the divergence's sum is the release's.

    Args:
        student, teacher: (..., B) logits of B bins.

    Returns:
        (...) at least 0, but for rounding.
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
    """The valuable localization region, and the IoU that weighs it.

    A location belongs to a box's region if the DIoU of its anchor and the box is in
    [share * t, t), where t is the threshold of ATSS: mean plus standard deviation of the IoUs of
    the box with the 9 nearest anchors of each level. A box that none of them overlaps has no
    region. Nothing is taken from the region for being positive too, for this or another box.

    Args:
        locations: anchors and levels.
        targets: ground truth.
        inside: (N, R) bool, the locations that count.
        share: of t, where the region begins.
        pairs: pairs of box and location looked at at once, which bounds memory.

    Returns:
        (N, R) in [0, 1]: IoU of anchor and box, of several boxes the largest; 0 outside.
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
    """Level name -> (N, dims, H, W), in the head's order, to (N, R, dims)."""
    return torch.cat([permute_to_N_HWA_K(x, dims) for x in maps.values()], 1)
