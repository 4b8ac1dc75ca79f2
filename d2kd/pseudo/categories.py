"""Which of the student's classes a teacher's classes are: said in a table, never guessed.

Shapes: K classes of the student, C of the teacher, M boxes of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from torchvision.ops import batched_nms

from d2kd.pseudo.records import Found

__all__ = ["CategoryMap"]


class CategoryMap:
    """A teacher's classes in terms of the student's.

    Args:
        student_classes: K names.
        table: teacher class -> student class, or None for one that is dropped. All C are in it.
            Several may become one. Without a table, the two lists must hold the same names (in any
            order), and each class is itself.
        teacher_classes: C names, in the order of the teacher's indices.
        iou: where several classes become one, their boxes that overlap by more are suppressed by
            the highest score; the teacher's own NMS compared them class by class.

    Attributes:
        owned: (K,) bool, the student's classes that this teacher knows.

    Raises:
        ValueError: a list names a class twice, the table lacks a class of the teacher or names one
            that does not exist, nothing is left, or there is no table where one is needed; the
            message then holds a table to paste.
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
        for whose, names in (("student", student), ("teacher", teacher)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(
                    f"categories: expected {whose} classes with different names, found more than "
                    f"once: {twice}. Rename them."
                )
        if table is None:
            if set(student) != set(teacher):
                raise ValueError(
                    "categories: the teacher's classes are not the student's, and no table says "
                    "which is which. Complete this one (None drops a class) and set it as "
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

    def apply(self, found: Found) -> Found:
        """The boxes with the student's class indices, without the dropped ones.

        Raises:
            ValueError: a class index is not one of the teacher's C.
        """
        known = len(self._index)
        if len(found.classes) and not 0 <= found.classes.min() <= found.classes.max() < known:
            raise ValueError(
                f"categories: expected class indices below {known}, as many as the teacher's "
                f"classes, found {found.classes.min()} to {found.classes.max()}. Are these the "
                "classes that the teacher was trained on?"
            )
        classes = self._index[found.classes]
        keep = classes >= 0
        doubtful = np.flatnonzero(keep & self._merged[classes])
        if len(doubtful) > 1:
            boxes, scores, groups = (
                torch.as_tensor(x[doubtful]) for x in (found.boxes, found.scores, classes)
            )
            keep[doubtful] = False
            keep[doubtful[batched_nms(boxes, scores, groups, self.iou).numpy()]] = True
        return Found(found.boxes[keep], found.scores[keep], classes[keep])


def _check(table: Mapping[str, str | None], student: list[str], teacher: list[str]) -> None:
    if missing := [name for name in teacher if name not in table]:
        raise ValueError(
            f"categories: expected all {len(teacher)} classes of the teacher in the table, missing "
            f"are {missing}. Add each with the student's class, or with None to drop it."
        )
    if unknown := sorted(set(table) - set(teacher)):
        raise ValueError(
            f"categories: the table names {unknown}, which the teacher does not have. Its classes "
            f"are {teacher}."
        )
    targets = {target for target in table.values() if target is not None}
    if unknown := sorted(targets - set(student)):
        raise ValueError(
            f"categories: the table leads to {unknown}, which the student does not have. Its "
            f"classes are {student}."
        )
    if not targets:
        raise ValueError(
            "categories: the table drops every class of the teacher, which leaves it nothing to "
            "label. Leave this teacher out, or map a class."
        )


def _draft(student: list[str], teacher: list[str]) -> str:
    """A table to paste: equal names are filled in, the nearest ones only remarked."""
    lower: dict[str, list[str]] = {}
    for name in student:
        lower.setdefault(name.lower(), []).append(name)
    lines = []
    for name in teacher:
        line = f"    {name!r}: {name if name in student else None!r},"
        if name in student:
            line = f"    {name!r}: {name!r},"
        elif near := [x for n in get_close_matches(name.lower(), lower) for x in lower[n]]:
            line += f"  # nearest: {', '.join(map(repr, near))}"
        lines.append(line)
    return "\n".join(["{", *lines, "}"])
