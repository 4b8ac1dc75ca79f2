"""What teachers say about images, and what becomes of it.

Shapes: M boxes of one image. Boxes are x1y1x2y2 in pixels of the image file, without resizing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Found", "Labels"]


@dataclass(frozen=True)
class Found:
    """What one teacher found in one image, above its score floor.

    Attributes:
        boxes: (M, 4) float32, inside the image.
        scores: (M,) float32 in [0, 1], not increasing.
        classes: (M,) int64, indices of the teacher's own classes or, once mapped, the student's.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Labels:
    """What an image is labelled with.

    Attributes:
        boxes: (M, 4) float32.
        scores: (M,) float32 in [0, 1].
        classes: (M,) int64, the student's.
        votes: (M,) int64, number of teachers that found the box.
        teachers: (M, T) bool, which of the T teachers did.
        ignore: (M,) bool, True for a region that is neither object nor background.
        weights: (M,) float32 in [0, 1], how much a box counts in training.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    votes: np.ndarray
    teachers: np.ndarray
    ignore: np.ndarray
    weights: np.ndarray
