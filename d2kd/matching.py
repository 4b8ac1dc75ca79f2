"""Detections of one image, and which of them are correct.

Pseudo labels and evaluation share this module. Boxes are x1y1x2y2 in pixels of the image. Shapes: D
detections and G ground-truth boxes of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from torchvision.ops import box_iou, nms

__all__ = [
    "Detections",
    "GroundTruth",
    "Match",
    "Overlaps",
    "match",
    "measure_overlaps",
    "suppress_across_classes",
]


@dataclass(frozen=True, kw_only=True)  # three arrays of one length: their order is easily confused
class Detections:
    """The detections of one image, as NumPy arrays.

    Attributes:
        boxes: (D, 4), floating point.
        classes: (D,), integers: the class indices of the detector or, after
            `d2kd.pseudo.categories.CategoryMap.apply`, of the student.
        scores: (D,), floating point in [0, 1].
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    @classmethod
    def from_instances(cls, instances: Instances) -> Detections:
        """Convert the `Instances` that a Detectron2 detector returns."""
        instances = instances.to("cpu")
        return cls(
            boxes=instances.pred_boxes.tensor.numpy(),
            classes=instances.pred_classes.numpy(),
            scores=instances.scores.numpy(),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> Detections:
        """Select detections by an index array, a slice or a boolean mask of shape (D,)."""
        return Detections(
            boxes=self.boxes[rows], classes=self.classes[rows], scores=self.scores[rows]
        )

    def above(self, threshold: float) -> Detections:
        """The detections whose score is at least `threshold`."""
        return self[self.scores >= threshold]


class GroundTruth(NamedTuple):
    """The objects of one image: boxes (G, 4) and classes (G,)."""

    boxes: np.ndarray
    classes: np.ndarray

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> GroundTruth:
        """Convert one of the dicts of Detectron2's `DatasetCatalog`. Crowds are left out."""
        objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        return cls(
            np.array(boxes, dtype=float).reshape(-1, 4),
            np.array([a["category_id"] for a in objects], dtype=int),
        )


def suppress_across_classes(detections: Detections, iou: float = 0.5) -> Detections:
    """Of detections of any class that overlap by more than `iou`, keep the one of highest score.

    Detectors suppress duplicates class by class. A detector that is unsure therefore reports one
    object under several classes, which makes a picture hard to read.
    """
    keep = nms(torch.as_tensor(detections.boxes), torch.as_tensor(detections.scores), iou)
    return detections[np.sort(keep.numpy())]


class Match(NamedTuple):
    """The result of `match`.

    Attributes:
        correct: (D,) bool, True for a detection that has an object of its own.
        found: (G,) bool, True for an object that has a detection.
    """

    correct: np.ndarray
    found: np.ndarray

    @property
    def errors(self) -> int:
        """Number of wrong detections plus number of missed objects."""
        return int((~self.correct).sum() + (~self.found).sum())


def match(detections: Detections, truth: GroundTruth, iou: float = 0.5) -> Match:
    """Assign each object to at most one detection of its class, as COCO's evaluation does.

    Detections choose in the order of their scores, highest first. Each one takes the object that it
    overlaps most among the objects that are still free.

    Args:
        iou: the smallest intersection over union that counts, in (0, 1].
    """
    overlap = _iou(detections, truth)
    overlap[detections.classes[:, None] != truth.classes] = 0
    correct = np.zeros(len(detections.boxes), dtype=bool)
    found = np.zeros(len(truth.boxes), dtype=bool)
    for i in np.argsort(-detections.scores, kind="stable"):
        free = np.where(found, 0, overlap[i])
        if free.size and free.max() >= iou:
            found[free.argmax()] = correct[i] = True
    return Match(correct, found)


class Overlaps(NamedTuple):
    """How the detections of an image overlap its objects, from which kinds of errors are told.

    Attributes:
        same, other: (D,) largest IoU with an object of the detection's class, and of another class;
            0 if there is none.
        same_object, other_object: (D,) index of that object; without a meaning where the IoU is 0.
    """

    same: np.ndarray
    other: np.ndarray
    same_object: np.ndarray
    other_object: np.ndarray


def measure_overlaps(detections: Detections, truth: GroundTruth) -> Overlaps:
    """Find the object of its class, and of another class, that each detection overlaps most."""
    # One more column, an object that nothing overlaps, because an image can have no object.
    overlap = np.pad(_iou(detections, truth), ((0, 0), (0, 1)))
    is_same = detections.classes[:, None] == np.append(truth.classes, -1)
    same, other = np.where(is_same, overlap, 0.0), np.where(is_same, 0.0, overlap)
    return Overlaps(same.max(1), other.max(1), same.argmax(1), other.argmax(1))


def _iou(detections: Detections, truth: GroundTruth) -> np.ndarray:
    """(D, G) intersection over union."""
    boxes = (torch.as_tensor(x.boxes, dtype=torch.float64) for x in (detections, truth))
    return box_iou(*boxes).numpy()
