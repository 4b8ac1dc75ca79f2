"""Rank Mimicking (RM), AAAI 2022, arXiv 2112.04840.

Shapes: N images, K classes, A anchors per cell, R = all anchors of all levels, G boxes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import Tensor

from ..detectors.losses import iou
from ..knowledge import Knowledge
from ..readers import GuidedReader, Reader, check_same_anchors
from ..targets import Targets
from ..values import check_choice, check_coefficients, check_flag, check_number
from .base import Method

__all__ = ["RankMimic", "class_logits", "group_log_softmax", "sort_in_groups"]


class RankMimic(Method):
    """The student learns to rank the candidates of an object as the teacher ranks them.

    The candidates of an object are the anchors, of all levels, that the detector's own label
    assignment gives to it. A softmax over the candidates turns the scores of each network into a
    distribution. The loss is KL(teacher || student), summed over the candidates, averaged over the
    objects of an image and then over images. An object with a single candidate is left out, because
    there is nothing to rank.

    There is no official code. Several sources agree on the loss on classification scores. One
    secondary source says, without a formula, that the paper also ranks by localization; that the
    IoU is ranked is our reading.

    Terms: "classification" ranks by the score of the object's class. "localization" ranks by the
    IoU of the decoded box and the object's box. A term whose coefficient is 0 is left out.

    Args:
        scores: what "classification" ranks by: "sigmoid" probabilities, which most sources use, or
            "logit"s, whose softmax is far less flat.
        tau: temperature of the softmax, > 0.
        classification, localization: coefficients of the two terms.
        sort: sort the scores of both networks within an object first, as one public implementation
            does. This compares the shapes of the two distributions, and not which anchor is best.
        assigner: "student" or "teacher": whose predictions the student's label assignment uses, if
            it depends on predictions. Both networks share the resulting candidates.
        weight, shared: see `Method`.

    Raises:
        ValueError: an argument has an impossible value.
    """

    needs = frozenset({"logits", "boxes"})
    reader: Reader
    """The student's reader, set by `setup`."""

    def __init__(
        self,
        *,
        scores: str = "sigmoid",
        tau: float = 1.0,
        classification: float = 1.0,
        localization: float = 1.0,
        sort: bool = False,
        assigner: str = "student",
        weight: float = 4.0,
        **shared,
    ):
        super().__init__(weight=weight, **shared)
        check_coefficients(
            "RankMimic",
            some_positive=True,
            classification=classification,
            localization=localization,
        )
        self.scores = check_choice("RankMimic.scores", scores, ("sigmoid", "logit"))
        self.tau = check_number("RankMimic.tau", tau, above=0)
        self.classification, self.localization = classification, localization
        self.sort = check_flag("RankMimic.sort", sort)
        self.assigner = check_choice("RankMimic.assigner", assigner, ("student", "teacher"))

    def setup(self, student: Reader, teacher: Reader) -> None:
        super().setup(student, teacher)
        for role, reader in (("student", student), ("teacher", teacher)):
            two_stage = isinstance(reader.detector, GeneralizedRCNN)
            if two_stage or reader.num_logits != reader.num_classes:
                raise ValueError(
                    f"RankMimic: expected a dense detector (RetinaNet, FCOS, ...) as {role}, "
                    f"found {reader.name}, whose dense head has no classes. Use a feature "
                    f"method such as FGD."
                )
        if self.assigner == "teacher" and not (
            isinstance(student, GuidedReader) or type(student.detector) is type(teacher.detector)
        ):
            raise ValueError(
                f"RankMimic.assigner: expected 'student' where student and teacher differ in kind, "
                f"found 'teacher' for {student.name} and {teacher.name}, whose predictions the "
                f"student's assigner cannot read."
            )
        if student.num_classes != teacher.num_classes:
            raise ValueError(
                f"RankMimic: expected the same number of classes of student ({student.name}) and "
                f"teacher ({teacher.name}), found {student.num_classes} and "
                f"{teacher.num_classes}. Use a feature method such as FGD."
            )
        check_same_anchors(student, teacher, "RankMimic")
        self.reader = student

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        assigned = self.candidates(student, teacher, targets)
        coefficients = dict(classification=self.classification, localization=self.localization)
        return {
            term: coefficients[term] * self._compare(s, t, assigned, targets)
            for term, (s, t) in self.ranked_scores(student, teacher, targets, assigned).items()
        }

    @torch.no_grad()
    def candidates(self, student: Knowledge, teacher: Knowledge, targets: Targets) -> Tensor:
        """The object whose candidate each anchor is: its index (N, R) in [0, G), else -1."""
        return self.reader.assign(student if self.assigner == "student" else teacher, targets)

    def ranked_scores(
        self, student: Knowledge, teacher: Knowledge, targets: Targets, assigned: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What each term ranks the candidates by.

        Args:
            student, teacher: with logits and boxes.
            targets: ground truth.
            assigned: see `candidates`.

        Returns:
            term name -> scores of student and teacher, (N, R) each. The scores of anchors without
            an object have no meaning.
        """
        # Anchors without an object take the class and the box of one added row.
        index = torch.where(assigned < 0, targets.valid.shape[1], assigned)
        scores = {}
        if self.classification:
            classes = F.pad(targets.classes, (0, 1)).gather(1, index)
            s, t = (class_logits(x, classes, self.reader.num_logits) for x in (student, teacher))
            if self.scores == "sigmoid":
                s, t = s.sigmoid(), t.sigmoid()
            scores["classification"] = s, t
        if self.localization:
            truth = F.pad(targets.boxes, (0, 0, 0, 1))
            truth = truth.gather(1, index[..., None].expand(*index.shape, 4))
            s, t = (
                iou(torch.where(assigned[..., None] < 0, 0.0, x.boxes), truth)
                for x in (student, teacher)
            )
            scores["localization"] = s, t
        return scores

    def _compare(
        self, student: Tensor, teacher: Tensor, assigned: Tensor, targets: Targets
    ) -> Tensor:
        """The loss for one kind of scores. `student`, `teacher` and `assigned` are (N, R)."""
        n, r = assigned.shape
        # Each anchor without an object is its own group, which adds exactly 0. With one group for
        # all of them, a GPU's atomic additions would queue for a single sum.
        alone = torch.arange(r, device=assigned.device).expand(n, r)
        groups = torch.where(assigned < 0, alone, r + assigned)
        num_groups = r + targets.valid.shape[1]
        # Predictions far from all objects reach neither loss nor gradient, even if they overflow.
        s, t = (torch.where(assigned < 0, 0.0, x / self.tau) for x in (student, teacher))
        if self.sort:
            s, t = sort_in_groups(s, groups), sort_in_groups(t, groups)
            groups = groups.sort(1).values
        log_q, log_p = (group_log_softmax(x, groups, num_groups) for x in (s, t))
        divergence = _kl(log_p, log_q).sum(1)
        ranked = _per_group(torch.ones_like(groups), groups, num_groups) >= 2
        return (divergence / ranked.sum(1).clamp(min=1)).mean()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The terms p (e^d - 1 - d) with d = log q - log p, which sum to KL(p || q).

    p and q each sum to 1. Unlike the terms p (log p - log q), no term is negative, even after
    rounding.
    """
    p, d = log_p.exp(), log_q - log_p
    near = d.clamp(max=1)  # e^d could overflow where p e^d = q cannot
    return torch.where(d < 1, p * (torch.expm1(near) - near), log_q.exp() - p - p * d)


def class_logits(knowledge: Knowledge, classes: Tensor, num_classes: int) -> Tensor:
    """The logit of one class for each anchor.

    Args:
        knowledge: with logits.
        classes: (N, R) long in [0, K).
        num_classes: K.

    Returns:
        (N, R).
    """
    levels, start = [], 0
    for logits in knowledge.logits.values():
        # One class is picked before flattening, so that the maps of all classes are not copied.
        by_anchor = logits.unflatten(1, (-1, num_classes))  # (N, A, K, H, W)
        n, a, _, h, w = by_anchor.shape
        level = classes[:, start : start + h * w * a].view(n, h, w, a).permute(0, 3, 1, 2)
        picked = by_anchor.gather(2, level.unsqueeze(2)).squeeze(2)  # (N, A, H, W)
        levels.append(picked.permute(0, 2, 3, 1).flatten(1))
        start += h * w * a
    return torch.cat(levels, 1)


def group_log_softmax(scores: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Log-softmax over the entries of a row that share a group.

    Args:
        scores: (N, R), finite.
        groups: (N, R) long in [0, num_groups), the group of each entry.
        num_groups: number of groups.

    Returns:
        (N, R).
    """
    fixed = scores.detach()  # a shift does not change the softmax, so it needs no gradient
    lowest = fixed.new_full((len(fixed), num_groups), -torch.inf)
    top = lowest.scatter_reduce(1, groups, fixed, "amax")
    shifted = scores - top.gather(1, groups)
    return shifted - _per_group(shifted.exp(), groups, num_groups).gather(1, groups).log()


def sort_in_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """Order the scores (N, R) of each row by group, and ascending within a group."""
    order = scores.argsort(1)
    order = order.gather(1, groups.gather(1, order).sort(dim=1, stable=True).indices)
    return scores.gather(1, order)


def _per_group(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sum the values (N, R) of each group: (N, num_groups)."""
    return values.new_zeros(len(values), num_groups).scatter_add(1, groups, values)
