"""Map a teacher's classes to the student's, by a table that you write. Nothing is guessed.

Shapes: K classes of the student, C of the teacher, M boxes of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from torchvision.ops import batched_nms

from ..matching import Detections

__all__ = ["CategoryMap"]


class CategoryMap:
    """A mapping from a teacher's classes to the student's.

    Args:
        student_classes: K names.
        table: teacher class -> student class, or None to drop the class. It must contain all C
            classes of the teacher. Several of them may map to one class of the student. Without a
            table, both lists must hold the same names (in any order), and each class maps to the
            class of its name.
        teacher_classes: C names, in the order of the teacher's class indices.
        iou: where several classes map to one, NMS with this IoU removes duplicates among their
            boxes. The teacher's own NMS compared boxes within one class only.

    Attributes:
        owned: (K,) bool, the student's classes that this teacher knows.

    Raises:
        ValueError: a list contains a name twice; the table lacks a class of the teacher, names a
            class that does not exist, or drops all classes; or there is no table although the lists
            differ. The last message contains a table to complete and paste.
    """

    def __init__(
        self,
        student_classes: Sequence[str],
        table: Mapping[str, str | None] | None,
        teacher_classes: Sequence[str],
        *,
        iou: float = 0.5,
    ):
        student, teacher = list(student_classes), list(teacher_classes)
        for owner, names in (("student", student), ("teacher", teacher)):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(
                    f"categories: expected {owner} classes with different names, found more than "
                    f"once: {repeated}. Rename them."
                )
        if table is None:
            if set(student) != set(teacher):
                raise ValueError(
                    "categories: expected a table, because the teacher's classes are not the "
                    "student's, found none. Complete this one (None drops a class) and set it as "
                    f"categories:\n{_draft(student, teacher)}"
                )
            table = {name: name for name in teacher}
        _check(table, student, teacher)
        index = {name: i for i, name in enumerate(student)}
        targets = [table[name] for name in teacher]
        self.iou, self.table = iou, dict(table)
        self._index = np.array([-1 if t is None else index[t] for t in targets], dtype=np.int64)
        sources = np.bincount(self._index[self._index >= 0], minlength=len(student))
        self.owned = sources > 0
        self._merged = sources > 1

    def apply(self, detections: Detections) -> Detections:
        """Give detections the student's class indices, without the boxes of dropped classes.

        Raises:
            ValueError: a class index is not one of the teacher's C.
        """
        known = len(self._index)
        indices = detections.classes
        if len(indices) and not 0 <= indices.min() <= indices.max() < known:
            raise ValueError(
                f"categories: expected class indices below {known}, the number of the teacher's "
                f"classes, found {indices.min()} to {indices.max()}. Are these the classes that "
                "the teacher was trained on?"
            )
        classes = self._index[indices]
        keep = classes >= 0
        merged = np.flatnonzero(keep & self._merged[classes])
        if len(merged) > 1:
            boxes, scores, groups = (
                torch.as_tensor(x[merged]) for x in (detections.boxes, detections.scores, classes)
            )
            keep[merged] = False
            keep[merged[batched_nms(boxes, scores, groups, self.iou).numpy()]] = True
        return Detections(
            boxes=detections.boxes[keep], scores=detections.scores[keep], classes=classes[keep]
        )


def _check(table: Mapping[str, str | None], student: list[str], teacher: list[str]) -> None:
    if missing := [name for name in teacher if name not in table]:
        raise ValueError(
            f"categories: expected all {len(teacher)} classes of the teacher in the table, found a "
            f"table without; missing are {missing}. Map each to a class of the student, or to None "
            f"to drop it."
        )
    if unknown := sorted(set(table) - set(teacher)):
        raise ValueError(
            f"categories: expected classes of the teacher in the table, {teacher}, found {unknown}."
        )
    targets = {target for target in table.values() if target is not None}
    if unknown := sorted(targets - set(student)):
        raise ValueError(
            f"categories: expected classes of the student in the table, {student}, found {unknown}."
        )
    if not targets:
        raise ValueError(
            "categories: expected a table that keeps a class of the teacher, found one that drops "
            "every class, so that it labels nothing. Remove this teacher, or map a class."
        )


def _draft(student: list[str], teacher: list[str]) -> str:
    """A table to paste. Equal names are filled in, similar names are only suggested."""
    lower: dict[str, list[str]] = {}
    for name in student:
        lower.setdefault(name.lower(), []).append(name)
    lines = []
    for name in teacher:
        line = f"    {name!r}: None,"
        if name in student:
            line = f"    {name!r}: {name!r},"
        elif near := [x for n in get_close_matches(name.lower(), lower) for x in lower[n]]:
            line += f"  # nearest: {', '.join(map(repr, near))}"
        lines.append(line)
    return "\n".join(["{", *lines, "}"])
