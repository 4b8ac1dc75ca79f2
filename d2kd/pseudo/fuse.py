"""One set of labels out of what several teachers found.

Shapes: K classes of the student, T teachers, n boxes of all teachers in one image (of one class in
the functions below `Fusion`), M labels. Boxes are x1y1x2y2 in pixels of the image file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torchvision.ops import nms

from d2kd.pseudo.records import Found, Labels
from d2kd.pseudo.thresholds import Bars

__all__ = ["Fusion"]


class Fusion:
    """Fuses the teachers' boxes class by class, applies the bars, settles conflicts.

    1. *One class.* Boxes are fused among the teachers that own the class. Where one teacher owns
       it, its boxes and scores stay as they are: its own NMS has run.
       `wbf`: weighted boxes fusion (arXiv 1910.13302; as in ensemble-boxes): from the surest box
       down, each joins the fused box that it overlaps most, by more than `iou`. The box is the mean
       of its members weighted by score, the score their mean * min(members, owners) / owners.
       `nms`: the surest box stands for those that overlap it by more than `iou`.
       `soft_nms`: a box costs those that overlap it by at least `iou` the part 1 - IoU of their
       score (arXiv 1704.04503, the linear form), and the bars judge what is left. It compares
       scores of different teachers as they are: use it where they mean the same.
    2. *Bars* (ours). A fused box is an object if a member reaches its own teacher's high bar, an
       ignore region if one reaches only the low bar, else nothing. Who is fused with whom does not
       depend on the bars, but box, score and votes come from the members that reach their low bar:
       raising a bar never adds a label (it may take the winner out of a conflict).
    3. *Conflicts* (ours). Two objects of different classes that overlap by more than
       `conflict_iou`, found by different teachers (none found both), contradict each other unless
       the classes may co-occur. The higher score stays, the loser becomes an ignore region. In
       chains the surest is settled first, and a loser beats nobody.

    The order of teachers and of equal scores is of no consequence: among equal scores the lower
    class index comes first, then the lower x1, y1, x2, y2, then, for equal boxes, the lower bars.

    Args:
        method: "wbf", "nms" or "soft_nms".
        iou, conflict_iou: overlaps in (0, 1]; at 1 nothing is fused, nothing is in conflict.
        may_co_occur: pairs of names of classes that may be at one place (person, rider).
        classes: the student's K names, in order; needed for `may_co_occur`.
        weight: "one", or "score": what a label counts in training.

    Raises:
        ValueError: an argument is none of these.
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
                f"fusion: may_co_occur names {unknown}, which are not among the student's classes "
                f"{classes}. Correct them, or give `classes`."
            )
        self.method, self.iou, self.conflict_iou, self.weight = method, iou, conflict_iou, weight
        self.may_co_occur = [tuple(pair) for pair in may_co_occur]
        self._may_co_occur = np.zeros((len(classes), len(classes)), dtype=bool)
        for a, b in may_co_occur:
            pair = [classes.index(a), classes.index(b)]
            self._may_co_occur[pair, pair[::-1]] = True

    def check(self, classes: Sequence[str]) -> None:
        """
        Raises:
            ValueError: `classes` are given, and are others than the student's.
        """
        if self.classes and self.classes != list(classes):
            raise ValueError(
                f"fusion.classes: expected the student's, {list(classes)}, found {self.classes}"
            )

    def __call__(
        self, found: Sequence[Found], owned: np.ndarray, bars: Sequence[Bars], size: Sequence[int]
    ) -> Labels:
        """Label one image.

        Args:
            found: T times what a teacher found, with the student's class indices.
            owned: (T, K) bool, the classes that each teacher knows.
            bars: T bars.
            size: height and width of the image in pixels.

        Returns:
            M labels, the surest first.

        Raises:
            ValueError: numbers of teachers or classes differ, a teacher found a class that it does
                not own, or a box lies more than a pixel outside the image.
        """
        owned = np.asarray(owned, dtype=bool)
        teacher = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
        boxes, scores, classes = _gather(found, owned, bars, size)
        if (known := len(self._may_co_occur)) not in (0, owned.shape[1]):
            raise ValueError(f"fusion: expected {owned.shape[1]} names in classes, found {known}.")
        high, low = (np.stack([getattr(b, name) for b in bars]) for name in ("high", "low"))
        # A box below every owner's low bar cannot count, nor, being the least sure, move others.
        keep = scores >= np.where(owned, low, np.inf).min(axis=0)[classes]
        high, low = high[teacher, classes], low[teacher, classes]
        order = np.lexsort((high, low, *boxes.T[::-1], -scores, classes))
        order = order[keep[order]]
        boxes, scores, classes, teacher = (x[order] for x in (boxes, scores, classes, teacher))
        high, low, owners = high[order], low[order], owned.sum(axis=0)[classes]
        group = np.arange(len(scores))
        member = (scores >= low)[:, None] & (teacher[:, None] == np.arange(len(found)))
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
        group, first, of = np.unique(group[reaches], return_index=True, return_inverse=True)
        first = np.flatnonzero(reaches)[first]  # the surest member that counts
        found_by = np.zeros((len(group), len(found)), dtype=bool)
        np.logical_or.at(found_by, of, member[reaches])
        positive = np.zeros(len(group), dtype=bool)
        np.logical_or.at(positive, of, (scores >= high)[reaches])
        fused, sure, classes = boxes[first], scores[first], classes[first]
        if self.method == "wbf":
            fused, sure = _means(boxes[reaches], scores[reaches], of, owners[first])

        order = np.argsort(-sure, kind="stable")
        fused, sure, classes, found_by, positive = (
            x[order] for x in (fused, sure, classes, found_by, positive)
        )
        positive[positive] = self._settle(fused[positive], classes[positive], found_by[positive])
        sure = sure.astype(np.float32)
        return Labels(
            boxes=fused.astype(np.float32),
            scores=sure,
            classes=classes,
            votes=found_by.sum(axis=1),
            teachers=found_by,
            ignore=~positive,
            weights=sure.copy() if self.weight == "score" else np.ones_like(sure),
        )

    def _settle(self, boxes: np.ndarray, classes: np.ndarray, found_by: np.ndarray) -> np.ndarray:
        """(M,) bool, which of the objects stay; they come surest first."""
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
    found: Sequence[Found], owned: np.ndarray, bars: Sequence[Bars], size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All boxes (n, 4) and scores (n,) in float64, and classes (n,), teacher after teacher."""
    shapes = {owned.shape, *((len(found), *b.high.shape) for b in bars)}
    if not len(found) == len(bars) > 0 or len(shapes) > 1:
        raise ValueError(
            f"fusion: expected at least one teacher, as many bars, and owned and bars of as many "
            f"classes, found {len(found)}, {len(bars)}, and shapes (T, K) {sorted(shapes)}."
        )
    for i, one in enumerate(found):
        strange = one.classes[~owned[i][one.classes]]
        if len(strange):
            raise ValueError(
                f"fusion: teacher {i} found class {strange[0]}, which it does not own. Map its "
                "classes first (CategoryMap.apply)."
            )
    boxes = np.concatenate([one.boxes for one in found]).astype(np.float64)
    frame = np.array([size[1], size[0]] * 2)
    if len(boxes) and (boxes.min() < -1 or (boxes > frame + 1).any()):
        raise ValueError(
            f"fusion: expected boxes in pixels of the image file, {size[0]} high and {size[1]} "
            f"wide, found coordinates from {boxes.min():g} to {boxes.max():g}."
        )
    scores = np.concatenate([one.scores for one in found]).astype(np.float64)
    return boxes.clip(0, frame), scores, np.concatenate([one.classes for one in found])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # calling torchvision's costs twice as much
    """Intersection over union, broadcast over all but the last dimension; 0 for empty boxes."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    sides = (high - low).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    area_a, area_b = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    return shared / np.maximum(area_a + area_b - shared, 1e-9)


def _wbf(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """(n,) groups; boxes come surest first."""
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
    """(n,) groups; boxes come surest first, each joins the surest that suppresses it."""
    kept = np.sort(nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).numpy())
    # The margin is for the last bit: torchvision divides elsewhere.
    group = (_iou(boxes[:, None], boxes[kept]) > iou - 1e-9).argmax(axis=1)
    group[kept] = np.arange(len(kept))
    return group


def _soft_nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """(n,) scores left; boxes come surest first, and of equal scores the first is taken first."""
    overlap = _iou(boxes[:, None], boxes)
    left, cost = scores.copy(), np.where(overlap >= iou, 1 - overlap, 1)
    waits = np.ones(len(boxes), dtype=bool)
    for _ in range(len(boxes)):
        i = np.where(waits, left, -1).argmax()
        waits[i] = False
        left[waits] *= cost[i, waits]
    return left


def _means(
    boxes: np.ndarray, scores: np.ndarray, of: np.ndarray, owners: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fused boxes (M, 4) and scores (M,) of the members: boxes (n, 4), scores, groups (n,)."""
    weights = np.maximum(scores, 1e-9)
    mass, count = np.bincount(of, weights), np.bincount(of)
    sums = [np.bincount(of, weights * side) for side in boxes.T]
    # The trap of the released code: its denominator counts teachers that cannot know the class.
    present = np.minimum(count, owners) / owners
    return np.stack(sums, axis=1) / mass[:, None], np.bincount(of, scores) / count * present
