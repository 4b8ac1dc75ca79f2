"""Notice when a teacher that learns from its student leads both astray.

A mean teacher has no labels to correct it. Three measurements change early: the number of labels in
an image, whether the student still finds what its teacher finds, and how far the weights of the two
are apart. The limits are ours. They are wide, so that a training that learns stays inside.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..matching import Detections, GroundTruth, match
from .thresholds import Thresholds

__all__ = ["CollapseWatch", "agreement", "divergence"]

logger = logging.getLogger(__name__)

COUNT_FACTOR = 5.0
LEAST_AGREEMENT = 0.2
AGREEMENTS = 5  # one agreement is of a single batch, which may have hardly any box
MOST_DIVERGENCE = 0.5


def agreement(
    teacher: Sequence[Detections], student: Sequence[Detections], thresholds: Thresholds
) -> float | None:
    """F1 of the student's boxes against the teacher's, in the same images.

    Boxes that reach the high threshold of their class count. They match at an IoU of 0.5.

    Returns:
        a value in [0, 1]; None if neither has such a box.
    """
    matched = boxes = 0
    for own, other in zip(teacher, student, strict=True):
        own, other = (d[d.scores >= thresholds.high[d.classes]] for d in (own, other))
        matched += int(match(other, GroundTruth(own.boxes, own.classes)).correct.sum())
        boxes += len(own) + len(other)
    return 2 * matched / boxes if boxes else None


@torch.no_grad()
def divergence(average: Iterable[Tensor], current: Iterable[Tensor]) -> float:
    """L2 distance of the current weights from their average, relative to the average's norm."""
    pairs = list(zip(average, current, strict=True))
    distance = torch.stack([(a - b).float().square().sum() for a, b in pairs]).sum()
    norm = torch.stack([a.float().square().sum() for a, _ in pairs]).sum()
    return float((distance / norm.clamp(min=1e-12)).sqrt())


class CollapseWatch:
    """Warns in words, once for each kind of trouble until it is over."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._agreements: deque[float] = deque(maxlen=AGREEMENTS)

    def check(
        self,
        step: int,
        *,
        boxes: float,
        objects: float | None,
        agreement: float | None,
        divergence: float,
    ) -> None:
        """
        Args:
            step: for the message.
            boxes: labels of the teacher per image.
            objects: objects per labeled image; None if that is not known.
            agreement: of teacher and student. The mean of the latest `AGREEMENTS` counts, without
                those that are None.
            divergence: of teacher and student.
        """
        if objects:
            self._say(
                "few",
                boxes * COUNT_FACTOR < objects,
                f"step {step}: the teacher labels {boxes:.2f} boxes per image, while labeled "
                f"images have {objects:.2f}. The student may learn that objects are background. "
                f"Lengthen burn_in, or begin with the labels of a larger teacher (relabel).",
            )
            self._say(
                "many",
                boxes > COUNT_FACTOR * objects,
                f"step {step}: the teacher labels {boxes:.2f} boxes per image, while labeled "
                f"images have {objects:.2f}. It may confirm its own errors. Raise the thresholds.",
            )
        if agreement is not None:
            self._agreements.append(agreement)
        if len(self._agreements) == AGREEMENTS:
            agreement = sum(self._agreements) / AGREEMENTS
            self._say(
                "agreement",
                agreement < LEAST_AGREEMENT,
                f"step {step}: the student agrees with its average in {agreement:.0%} of their "
                f"boxes. Lower optimizer.lr, or raise the thresholds.",
            )
        self._say(
            "divergence",
            divergence > MOST_DIVERGENCE,
            f"step {step}: the student's weights differ from their average by {divergence:.0%}. "
            f"The average labels for a student that it no longer resembles. Lower optimizer.lr or "
            f"train.ema.decay.",
        )

        self._warned.discard("nothing")

    def warn_of_nothing(self, step: int, reason: str) -> None:
        """Warn that the teacher has labeled no image since the last record.

        Args:
            step: for the message.
            reason: a sentence.
        """
        self._say("nothing", True, f"step {step}: the teacher labels no image: {reason}")

    def state_dict(self) -> dict[str, list]:
        return {"warned": sorted(self._warned), "agreements": list(self._agreements)}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        self._warned = set(state_dict["warned"])
        self._agreements = deque(state_dict["agreements"], maxlen=AGREEMENTS)

    def _say(self, kind: str, is_wrong: bool, message: str) -> None:
        if is_wrong and kind not in self._warned:
            logger.warning("mean teacher: %s", message)
        (self._warned.add if is_wrong else self._warned.discard)(kind)
