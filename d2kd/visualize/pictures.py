"""The images of a picture: pixels, what the networks get, objects and pseudo labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from ..data.pixels import read_pixels
from ..matching import Detections, GroundTruth
from ..targets import Targets

__all__ = ["Picture", "PseudoLabels", "image_format", "make_picture", "spread"]

T = TypeVar("T")


class PseudoLabels(NamedTuple):
    """The pseudo labels of one image.

    Attributes:
        boxes: the labels with their scores.
        ignored: (I, 4), regions that are neither object nor background.
    """

    boxes: Detections
    ignored: np.ndarray

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PseudoLabels:
        """Convert one of the dicts that `d2kd.pseudo.load_pseudo_labels` returns."""
        annotations = record["annotations"]
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
            dtype=float,
        ).reshape(-1, 4)
        classes = np.array([a["category_id"] for a in annotations], dtype=int)
        scores = np.array([a["score"] for a in annotations], dtype=float)
        ignored = np.array([bool(a["pseudo_ignore"]) for a in annotations], dtype=bool)
        all_boxes = Detections(boxes=boxes, classes=classes, scores=scores)
        return cls(all_boxes[~ignored], boxes[ignored])


@dataclass(frozen=True)
class Picture:
    """An image to draw.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, the image as it is stored.
        inputs: the model's input, as the test mapper of the config makes it.
        resized: (h', w', 3) uint8 RGB, the pixels of `inputs`.
        truth: true boxes in pixels of the stored image; None without ground truth.
        labels: pseudo labels in pixels of the stored image; None without.
    """

    pixels: np.ndarray
    inputs: dict[str, Any]
    resized: np.ndarray
    truth: GroundTruth | None = None
    labels: PseudoLabels | None = None

    @property
    def objects(self) -> GroundTruth | None:
        """What a student trains on: true boxes or else pseudo labels, in pixels of `resized`."""
        if self.truth is not None:
            return self.truth._replace(boxes=self._resize(self.truth.boxes))
        if self.labels is None:
            return None
        boxes = self.labels.boxes
        return GroundTruth(self._resize(boxes.boxes), boxes.classes)

    def _resize(self, boxes: np.ndarray) -> np.ndarray:
        (h, w), (new_h, new_w) = self.pixels.shape[:2], self.resized.shape[:2]
        return boxes * ([new_w / w, new_h / h] * 2)

    def targets(self, device: torch.device | str, num_classes: int) -> Targets:
        """`objects` as the methods get them in training, a batch of one image."""
        objects = self.objects
        assert objects is not None
        instances = Instances(
            self.resized.shape[:2],
            gt_boxes=Boxes(torch.as_tensor(objects.boxes, dtype=torch.float32)),
            gt_classes=torch.as_tensor(objects.classes, dtype=torch.long),
        )
        ignored = () if self.labels is None else self._resize(self.labels.ignored)
        given = {**self.inputs, "instances": instances, "ignore_boxes": ignored}
        return Targets.from_inputs([given], device, num_classes)


def make_picture(
    record: Mapping[str, Any], mapper: Callable[[dict], dict], *, pseudo: bool = False
) -> Picture:
    """Read an image and map it as for evaluation.

    Args:
        record: a dict of Detectron2's `DatasetCatalog`; without "annotations" there is no truth.
        mapper: `dataloader.test.mapper` of a config.
        pseudo: whether the annotations are pseudo labels.

    Raises:
        FileNotFoundError, ValueError: see `d2kd.data.pixels.read_pixels`.
    """
    pixels = read_pixels(record["file_name"])
    height, width = pixels.shape[:2]
    given = {**copy.deepcopy(dict(record)), "height": height, "width": width}
    inputs = mapper(given)
    resized = inputs["image"].permute(1, 2, 0).numpy()
    if image_format(mapper) == "BGR":
        resized = resized[..., ::-1]
    truth = labels = None
    if pseudo:
        labels = PseudoLabels.from_record(record)
    elif "annotations" in record:
        truth = GroundTruth.from_record(record)
    return Picture(pixels, inputs, np.ascontiguousarray(resized), truth, labels)


def spread(items: Sequence[T], count: int) -> Sequence[T]:
    """`count` items, evenly spread over a sequence; all of them if there are no more.

    The first items alone would be of one class where a set is ordered by class.
    """
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def image_format(mapper: Any) -> str:
    """Channel order of the images that a mapper makes: Detectron2's name of it, or detrex's."""
    return getattr(mapper, "image_format", None) or getattr(mapper, "img_format", None) or "BGR"
