"""Choose what the demo's picture shows: detections, score thresholds and images.

Boxes are x1y1x2y2 in pixels of the image. See `d2kd.matching` for the types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2kd.matching import Detections, GroundTruth, match

__all__ = ["best_threshold", "choose_images"]


def best_threshold(detections: Sequence[Detections], truths: Sequence[GroundTruth]) -> float:
    """The score threshold at which the F1 of a detector over these images is highest.

    The scores of different detectors are not comparable, so the demo shows each detector at its own
    best threshold. Without any detection, the threshold is 0.5.
    """
    scores = np.concatenate([d.scores for d in detections]) if detections else np.zeros(0)
    if not len(scores):
        return 0.5
    pairs = zip(detections, truths, strict=True)
    correct = np.concatenate([match(d, t).correct for d, t in pairs])
    order = np.argsort(-scores, kind="stable")
    objects = sum(len(t.boxes) for t in truths)
    f1 = 2 * correct[order].cumsum() / (np.arange(1, len(scores) + 1) + objects)
    f1[:-1][np.diff(scores[order]) == 0] = 0  # equal scores pass a threshold together
    return float(scores[order][f1.argmax()])


def choose_images(
    truths: Mapping[Any, GroundTruth],
    alone: Mapping[Any, Detections],
    distilled: Mapping[Any, Detections],
    *,
    differ: int = 3,
    fail: int = 2,
    least: int = 3,
) -> tuple[list[Any], str]:
    """Choose images that show how two students differ, by a rule that favors neither student.

    Args:
        truths: image id -> objects.
        alone, distilled: image id -> detections of the two students.
        differ: number of images for which the students' error counts differ most, whichever
            student is better.
        fail: number of images for which the distilled student makes most errors.
        least: number of objects that an image must have.

    Returns:
        the image ids, and a sentence that states the rule.
    """
    errors = {
        i: [match(student[i], truth).errors for student in (alone, distilled)]
        for i, truth in truths.items()
        if len(truth.boxes) >= least
    }
    by_difference = sorted(errors, key=lambda i: (-abs(errors[i][0] - errors[i][1]), i))
    chosen = by_difference[:differ]
    by_failure = sorted(set(errors) - set(chosen), key=lambda i: (-errors[i][1], i))
    rule = (
        f"Rows are chosen by rule, among validation images with at least {least} objects: the "
        f"{differ} where the two students' numbers of errors differ most, whichever is better; "
        f"then the {fail} where the distilled student makes most errors."
    )
    return chosen + by_failure[:fail], rule
