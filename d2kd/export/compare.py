"""Compare the detections of an exported file with those of the Detectron2 model, box by box."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BOX_TOLERANCE",
    "SCORE_TOLERANCE",
    "Agreement",
    "check_agreement",
    "compare",
    "measure_agreement",
    "shifted",
    "sizes_of",
]

BOX_TOLERANCE = 0.1  # pixels, of each coordinate
SCORE_TOLERANCE = 0.001
MAX_UNMATCHED = 0.01  # of all detections


class Agreement(NamedTuple):
    """How two outputs agree.

    Attributes:
        detections: number of detections of the Detectron2 model.
        unmatched: detections of either output that the other one does not have.
        box: largest difference of a coordinate of matched boxes, in pixels.
        score: largest difference of scores of matched boxes.
    """

    detections: int = 0
    unmatched: int = 0
    box: float = 0.0
    score: float = 0.0

    @property
    def differs(self) -> bool:
        """Whether more detections differ than rounding explains.

        A detection whose score or overlap lies on a threshold can be in one output and not in the
        other one, because of rounding. One in a hundred detections may.
        """
        return self.unmatched > MAX_UNMATCHED * self.detections

    def __add__(self, other: Any) -> Agreement:
        """Agreement on the images of both."""
        return Agreement(
            self.detections + other.detections,
            self.unmatched + other.unmatched,
            max(self.box, other.box),
            max(self.score, other.score),
        )


def compare(expected: Instances, found: Instances) -> Agreement:
    """Pair the detections of one image: same class, score and box within the tolerances.

    Each detection has at most one partner. Boxes of equal scores may change
    places, so the order does not count.
    """
    boxes = _distance(expected.pred_boxes.tensor, found.pred_boxes.tensor)
    scores = _distance(expected.scores[:, None], found.scores[:, None])
    same = expected.pred_classes[:, None] == found.pred_classes
    same &= (boxes <= BOX_TOLERANCE) & (scores <= SCORE_TOLERANCE)
    rows, columns = linear_sum_assignment(~same.numpy())
    matched = same[rows, columns].numpy()
    rows, columns = rows[matched], columns[matched]
    unmatched = len(expected) + len(found) - 2 * len(rows)
    if not len(rows):
        return Agreement(len(expected), unmatched)
    largest = (float(x[rows, columns].max()) for x in (boxes, scores))
    return Agreement(len(expected), unmatched, *largest)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) largest difference of a component between rows of (A, D) and of (B, D)."""
    return (a[:, None].double() - b[None].double()).abs().amax(-1)


def sizes_of(image: Tensor) -> list[Tensor]:
    """An image (3, H, W) of uint8 at a smaller and at a larger size, with another aspect ratio."""
    height, width = image.shape[-2:]
    factors = (0.6, 0.75), (1.3, 1.2)
    sizes = [(max(1, int(height * y)), max(1, int(width * x))) for y, x in factors]
    resized = [F.interpolate(image[None].float(), size, mode="bilinear")[0] for size in sizes]
    return [x.round().to(torch.uint8) for x in resized]


def shifted(image: Tensor, count: int) -> list[Tensor]:
    """`count` images of one size: the image (3, H, W), moved to the right by parts of its width.

    What leaves the image on the right comes in on the left.
    """
    return [image.roll(i * image.shape[-1] // count, dims=-1) for i in range(count)]


def measure_agreement(expected: Iterable[Instances], found: Iterable[Instances]) -> Agreement:
    """Compare the detections on images.

    Args:
        expected: detections of the Detectron2 model for each image.
        found: detections of a file.
    """
    return sum((compare(*pair) for pair in zip(expected, found, strict=True)), Agreement())


def check_agreement(
    name: str, expected: Iterable[Instances], found: Iterable[Instances]
) -> Agreement:
    """Compare the detections on images, and refuse a file if they differ.

    Args:
        name: of the file.
        expected, found: see `measure_agreement`.

    Raises:
        ValueError: more detections differ than rounding explains.
    """
    total = measure_agreement(expected, found)
    if total.differs:
        raise ValueError(
            f"{name}: expected the detections of the Detectron2 model (the same class, boxes "
            f"within {BOX_TOLERANCE} pixels, scores within {SCORE_TOLERANCE}), found "
            f"{total.unmatched} that differ, where the model has {total.detections}. No file is "
            f"left. Choose another of --formats, and please report this."
        )
    return total
