"""Which detections are right, and which images tell most about two detectors.

Boxes are x1y1x2y2 in pixels of the image. Shapes: D detections and G true boxes of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from torchvision.ops import box_iou, nms

__all__ = ["Detections", "Match", "Truth", "best_threshold", "choose_images", "match"]


class Detections(NamedTuple):
    """What a detector found in one image: boxes (D, 4), classes (D,), scores (D,)."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, instances: Instances) -> Detections:
        """From the `Instances` of a Detectron2 detector."""
        instances = instances.to("cpu")
        return cls(
            instances.pred_boxes.tensor.numpy(),
            instances.pred_classes.numpy(),
            instances.scores.numpy(),
        )

    def above(self, threshold: float) -> Detections:
        """Those whose score is at least `threshold`."""
        return self._only(self.scores >= threshold)

    def surest(self, iou: float = 0.5) -> Detections:
        """The surest of the detections of any class that overlap by more than `iou`.

        Detectors suppress duplicates class by class: an unsure one calls one thing by many names.
        """
        keep = nms(torch.as_tensor(self.boxes), torch.as_tensor(self.scores), iou)
        return self._only(np.sort(keep.numpy()))

    def _only(self, keep: np.ndarray) -> Detections:
        return Detections(self.boxes[keep], self.classes[keep], self.scores[keep])


class Truth(NamedTuple):
    """What is in one image: boxes (G, 4), classes (G,)."""

    boxes: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Truth:
        """From one of the dicts of Detectron2's `DatasetCatalog`; crowds are left out."""
        found = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
        return cls(
            np.array(boxes, dtype=float).reshape(-1, 4),
            np.array([a["category_id"] for a in found], dtype=int),
        )


class Match(NamedTuple):
    """Which detections are correct (D,) and which true boxes are found (G,), both bool."""

    correct: np.ndarray
    found: np.ndarray

    @property
    def errors(self) -> int:
        """Wrong detections plus missed objects."""
        return int((~self.correct).sum() + (~self.found).sum())


def match(detections: Detections, truth: Truth, iou: float = 0.5) -> Match:
    """Give each true box to at most one detection of its class, as COCO does.

    The highest score chooses first, and takes the free box that it overlaps most.

    Args:
        iou: the least intersection over union that counts.
    """
    boxes = (torch.as_tensor(x.boxes, dtype=torch.float64) for x in (detections, truth))
    overlap = box_iou(*boxes).numpy()
    overlap[detections.classes[:, None] != truth.classes] = 0
    correct = np.zeros(len(detections.boxes), dtype=bool)
    found = np.zeros(len(truth.boxes), dtype=bool)
    for i in np.argsort(-detections.scores, kind="stable"):
        free = np.where(found, 0, overlap[i])
        if free.size and free.max() >= iou:
            found[free.argmax()] = correct[i] = True
    return Match(correct, found)


def best_threshold(detections: Sequence[Detections], truths: Sequence[Truth]) -> float:
    """The score from which a detector's F1 over these images is highest.

    Detectors differ in how sure they are; each is shown at its own best.
    """
    scores = np.concatenate([d.scores for d in detections]) if detections else np.zeros(0)
    if not len(scores):
        return 0.5
    pairs = zip(detections, truths, strict=True)
    correct = np.concatenate([match(d, t).correct for d, t in pairs])
    order = np.argsort(-scores, kind="stable")
    objects = sum(len(t.boxes) for t in truths)
    f1 = 2 * correct[order].cumsum() / (np.arange(1, len(scores) + 1) + objects)
    f1[:-1][np.diff(scores[order]) == 0] = 0  # equal scores are shown together or not at all
    return float(scores[order][f1.argmax()])


def choose_images(
    truths: Mapping[Any, Truth],
    alone: Mapping[Any, Detections],
    distilled: Mapping[Any, Detections],
    *,
    differ: int = 3,
    fail: int = 2,
    least: int = 3,
) -> tuple[list[Any], str]:
    """Choose telling images by a rule that favours nobody.

    Args:
        truths, alone, distilled: image id -> true boxes, and detections of the two students.
        differ: images where the students' numbers of errors differ most, either way.
        fail: images where the distilled student makes most errors.
        least: objects that an image must have.

    Returns:
        image ids, and the rule in words.
    """
    errors = {
        i: [match(found[i], truth).errors for found in (alone, distilled)]
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
