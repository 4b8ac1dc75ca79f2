"""Fuse the boxes that several teachers found in an image into one set of labels.

Shapes: K classes of the student; T teachers; n boxes of all teachers in one image (of one class in
the functions below `Fusion`); M labels. Boxes are x1y1x2y2 in pixels of the image file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torchvision.ops import nms

from ..matching import Detections
from .thresholds import Thresholds

__all__ = ["Fusion", "Labels"]


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    Attributes:
        boxes: (M, 4) float32.
        scores: (M,) float32 in [0, 1].
        classes: (M,) int64, the student's class indices.
        votes: (M,) int64, number of teachers that found the box.
        teachers: (M, T) bool, which of the teachers found it.
        ignore: (M,) bool, True for a region that is neither object nor background in training.
        weights: (M,) float32 in [0, 1], how much the box counts in training.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    votes: np.ndarray
    teachers: np.ndarray
    ignore: np.ndarray
    weights: np.ndarray


class Fusion:
    """Fuse the teachers' boxes class by class, apply the thresholds, and resolve conflicts.

    1. *One class.* The boxes of a class are fused among the teachers that own (know) the class. If
       only one teacher owns it, its boxes and scores are kept as they are, because the teacher's
       own NMS has run already.
       `wbf`: weighted boxes fusion (arXiv 1910.13302, as in the package ensemble-boxes). Boxes are
       taken by descending score. Each one joins the fused box that it overlaps most, if the IoU
       exceeds `iou`, or else starts a new one. A fused box is the mean of its members, weighted by
       score. Its score is the members' mean score times min(members, owners) / owners.
       `nms`: the box of highest score replaces the boxes that overlap it by more than `iou`.
       `soft_nms`: a box multiplies the scores of boxes that overlap it by at least `iou` by 1 - IoU
       (arXiv 1704.04503, the linear form). The thresholds are compared with the reduced scores.
       Scores of different teachers are compared directly, so use it only where they mean the same.
    2. *Thresholds* (ours). A fused box is an object if one of its members reaches the high
       threshold of its own teacher. It is a region to ignore if a member reaches only the low one,
       and is dropped otherwise. The thresholds do not change which boxes are fused, but box, score
       and votes are computed from the members that reach their low threshold. Raising a threshold
       therefore never adds a label, with one exception: it can remove the winner of a conflict.
    3. *Conflicts* (ours). Two objects of different classes are in conflict if they overlap by more
       than `conflict_iou` and no teacher found both, unless the two classes may co-occur. The
       object of higher score stays, the other one becomes a region to ignore. Conflicts are
       resolved by descending score, and an object that has lost does not win against a third one.

    The result does not depend on the order of teachers or of equal scores. Among equal scores, the
    lower class index comes first, then the lower x1, y1, x2, y2, and for equal boxes the lower
    thresholds.

    Args:
        method: "wbf", "nms" or "soft_nms".
        iou, conflict_iou: overlaps in (0, 1]. At 1, nothing is fused or in conflict.
        may_co_occur: pairs of class names that may be at one place, such as ("person", "rider").
        classes: the student's K class names, in order. Required for `may_co_occur`.
        weight: how much a label counts in training: "one", or "score" for its score.

    Raises:
        ValueError: an argument has another value than these.
    """

    def __init__(
        self,
        method: str = "wbf",
        iou: float = 0.55,
        conflict_iou: float = 0.85,
        may_co_occur: Sequence[tuple[str, str]] = (),
        classes: Sequence[str] = (),
        weight: str = "one",
    ):
        if method not in ("wbf", "nms", "soft_nms") or weight not in ("one", "score"):
            expected = "method wbf, nms or soft_nms and weight one or score"
            raise ValueError(f"fusion: expected {expected}, found {method!r} and {weight!r}.")
        if not (0 < iou <= 1 and 0 < conflict_iou <= 1):
            raise ValueError(f"fusion: expected iou in (0, 1], found {iou} and {conflict_iou}.")
        self.classes = classes = list(classes)
        if unknown := sorted({name for pair in may_co_occur for name in pair} - set(classes)):
            raise ValueError(
                f"fusion.may_co_occur: expected names of the student's classes {classes}, found "
                f"{unknown}. Correct them, or give `classes`."
            )
        self.method, self.iou, self.conflict_iou, self.weight = method, iou, conflict_iou, weight
        self.may_co_occur = [tuple(pair) for pair in may_co_occur]
        self._may_co_occur = np.zeros((len(classes), len(classes)), dtype=bool)
        for a, b in may_co_occur:
            pair = [classes.index(a), classes.index(b)]
            self._may_co_occur[pair, pair[::-1]] = True

    def check(self, classes: Sequence[str]) -> None:
        """Compare this object's `classes`, where they are given, with the student's.

        Raises:
            ValueError: they differ.
        """
        if self.classes and self.classes != list(classes):
            raise ValueError(
                f"fusion.classes: expected the student's, {list(classes)}, found {self.classes}"
            )

    def __call__(
        self,
        detections: Sequence[Detections],
        owned: np.ndarray,
        thresholds: Sequence[Thresholds],
        size: Sequence[int],
    ) -> Labels:
        """Label one image.

        Args:
            detections: the boxes of each of the T teachers, with the student's class indices.
            owned: (T, K) bool, the classes that each teacher knows.
            thresholds: of each of the T teachers.
            size: height and width of the image in pixels.

        Returns:
            M labels, by descending score.

        Raises:
            ValueError: the arguments disagree in the number of teachers or classes, a teacher found
                a class that it does not own, or a box lies more than a pixel outside the image.
        """
        owned = np.asarray(owned, dtype=bool)
        num_teachers = len(detections)
        teacher = np.repeat(np.arange(num_teachers), [len(d.scores) for d in detections])
        boxes, scores, classes = _gather(detections, owned, thresholds, size)
        if (known := len(self._may_co_occur)) not in (0, owned.shape[1]):
            raise ValueError(f"fusion: expected {owned.shape[1]} names in classes, found {known}.")
        high, low = (np.stack([getattr(t, name) for t in thresholds]) for name in ("high", "low"))
        # A box below the low thresholds of all owners cannot become a label. It cannot change other
        # boxes either, because its score is lower than theirs.
        keep = scores >= np.where(owned, low, np.inf).min(axis=0)[classes]
        high, low = high[teacher, classes], low[teacher, classes]
        order = np.lexsort((high, low, *boxes.T[::-1], -scores, classes))
        order = order[keep[order]]
        boxes, scores, classes, teacher = (x[order] for x in (boxes, scores, classes, teacher))
        high, low, owners = high[order], low[order], owned.sum(axis=0)[classes]
        group = np.arange(len(scores))
        member = (scores >= low)[:, None] & (teacher[:, None] == np.arange(num_teachers))
        for start, stop in pairwise(np.flatnonzero(np.diff(classes, prepend=-1, append=-1))):
            part = slice(start, stop)
            if owners[start] == 1 or stop - start == 1:
                continue
            if self.method == "soft_nms":
                near = _iou(boxes[part, None], boxes[part]) >= self.iou
                member[part] = near @ member[part] | member[part]
                scores[part] = _soft_nms(boxes[part], scores[part], self.iou)
            else:
                grouped = _wbf if self.method == "wbf" else _nms
                group[part] = start + grouped(boxes[part], scores[part], self.iou)
        reaches = scores >= low
        group, first, group_of = np.unique(group[reaches], return_index=True, return_inverse=True)
        first = np.flatnonzero(reaches)[first]  # the member of highest score
        found_by = np.zeros((len(group), num_teachers), dtype=bool)
        np.logical_or.at(found_by, group_of, member[reaches])
        positive = np.zeros(len(group), dtype=bool)
        np.logical_or.at(positive, group_of, (scores >= high)[reaches])
        fused, fused_scores, classes = boxes[first], scores[first], classes[first]
        if self.method == "wbf":
            fused, fused_scores = _means(boxes[reaches], scores[reaches], group_of, owners[first])

        order = np.argsort(-fused_scores, kind="stable")
        fused, fused_scores, classes, found_by, positive = (
            x[order] for x in (fused, fused_scores, classes, found_by, positive)
        )
        positive[positive] = self._resolve(fused[positive], classes[positive], found_by[positive])
        fused_scores = fused_scores.astype(np.float32)
        return Labels(
            boxes=fused.astype(np.float32),
            scores=fused_scores,
            classes=classes,
            votes=found_by.sum(axis=1),
            teachers=found_by,
            ignore=~positive,
            weights=fused_scores.copy() if self.weight == "score" else np.ones_like(fused_scores),
        )

    def _resolve(self, boxes: np.ndarray, classes: np.ndarray, found_by: np.ndarray) -> np.ndarray:
        """(M,) bool, which of the objects stay. They are given by descending score."""
        conflict = (classes[:, None] != classes) & ~(found_by @ found_by.T)
        if len(self._may_co_occur):
            conflict &= ~self._may_co_occur[classes[:, None], classes]
        conflict &= _iou(boxes[:, None], boxes) > self.conflict_iou
        stays = np.ones(len(boxes), dtype=bool)
        for i in np.flatnonzero(conflict.any(axis=1)):
            if stays[i]:
                stays &= ~conflict[i]
        return stays


def _gather(
    detections: Sequence[Detections],
    owned: np.ndarray,
    thresholds: Sequence[Thresholds],
    size: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All boxes (n, 4) and scores (n,) in float64, and classes (n,), teacher after teacher."""
    shapes = {owned.shape, *((len(detections), *t.high.shape) for t in thresholds)}
    if not len(detections) == len(thresholds) > 0 or len(shapes) > 1:
        raise ValueError(
            f"fusion: expected at least one teacher, as many thresholds, and owned and thresholds "
            f"of as many classes, found {len(detections)}, {len(thresholds)}, and shapes (T, K) "
            f"{sorted(shapes)}."
        )
    for i, found in enumerate(detections):
        unowned = found.classes[~owned[i][found.classes]]
        if len(unowned):
            raise ValueError(
                f"fusion: expected classes that teacher {i} owns, found class {unowned[0]}. Map "
                "its classes first (CategoryMap.apply)."
            )
    boxes = np.concatenate([found.boxes for found in detections]).astype(np.float64)
    frame = np.array([size[1], size[0]] * 2)
    if len(boxes) and (boxes.min() < -1 or (boxes > frame + 1).any()):
        raise ValueError(
            f"fusion: expected boxes in pixels of the image file, {size[0]} high and {size[1]} "
            f"wide, found coordinates from {boxes.min():g} to {boxes.max():g}."
        )
    scores = np.concatenate([found.scores for found in detections]).astype(np.float64)
    return boxes.clip(0, frame), scores, np.concatenate([found.classes for found in detections])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # torchvision's takes twice as long here
    """Intersection over union, broadcast over all dimensions but the last; 0 for empty boxes."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    sides = (high - low).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    area_a, area_b = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    return shared / np.maximum(area_a + area_b - shared, 1e-9)


def _wbf(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """(n,) group indices. Boxes are given by descending score."""
    group = np.zeros(len(boxes), dtype=np.int64)
    fused, mass, count = np.zeros_like(boxes), np.zeros(len(boxes)), 0
    for i, (box, score) in enumerate(zip(boxes, np.maximum(scores, 1e-9), strict=True)):
        overlap = _iou(fused[:count], box)
        j = overlap.argmax() if count else 0
        if not count or overlap[j] <= iou:
            j, count = count, count + 1
        group[i] = j
        mass[j] += score
        fused[j] += (box - fused[j]) * (score / mass[j])
    return group


def _nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """(n,) group indices. Boxes are given by descending score; each joins the box of highest score
    that suppresses it."""
    kept = np.sort(nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).numpy())
    # torchvision computes the IoU in another order, so that its last bit may differ.
    group = (_iou(boxes[:, None], boxes[kept]) > iou - 1e-9).argmax(axis=1)
    group[kept] = np.arange(len(kept))
    return group


def _soft_nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """(n,) reduced scores. Boxes are given by descending score; of equal scores, the first box is
    taken first."""
    overlap = _iou(boxes[:, None], boxes)
    reduced, factor = scores.copy(), np.where(overlap >= iou, 1 - overlap, 1)
    waiting = np.ones(len(boxes), dtype=bool)
    for _ in range(len(boxes)):
        i = np.where(waiting, reduced, -1).argmax()
        waiting[i] = False
        reduced[waiting] *= factor[i, waiting]
    return reduced


def _means(
    boxes: np.ndarray, scores: np.ndarray, group_of: np.ndarray, owners: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean boxes (M, 4) and scores (M,) of groups.

    Args:
        boxes, scores, group_of: (n, 4), (n,) and (n,), the members and their group indices.
        owners: (M,), number of teachers that own the class of the group.
    """
    weights = np.maximum(scores, 1e-9)
    mass, count = np.bincount(group_of, weights), np.bincount(group_of)
    sums = [np.bincount(group_of, weights * side) for side in boxes.T]
    # The released code divides by the number of all teachers. That would lower the score of classes
    # that some teachers do not know.
    present = np.minimum(count, owners) / owners
    return np.stack(sums, axis=1) / mass[:, None], np.bincount(group_of, scores) / count * present
