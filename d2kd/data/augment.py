"""Strong augmentations that Detectron2 does not have. They change pixels and keep the boxes."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from detectron2.data import transforms as T

__all__ = ["RandomBlur", "RandomErase"]


class RandomBlur(T.Augmentation):
    """Gaussian blur.

    Args:
        sigma_min, sigma_max: range of the standard deviation, in pixels.

    Raises:
        ValueError: the range is empty or not positive.
    """

    def __init__(self, sigma_min: float = 0.1, sigma_max: float = 2.0):
        super().__init__()
        if not 0 < sigma_min <= sigma_max:
            raise ValueError(
                f"RandomBlur: expected 0 < sigma_min <= sigma_max, found {sigma_min}, {sigma_max}"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        sigma = float(self._rand_range(self.sigma_min, self.sigma_max))
        return T.ColorTransform(functools.partial(_blur, sigma=sigma))


class RandomErase(T.Augmentation):
    """Paint rectangles in random colors over the image.

    This is Random Erasing (arXiv 1708.04896), with two differences: a rectangle may lie anywhere,
    independent of the boxes, and has one color.

    Args:
        count: number of rectangles.
        area_min, area_max: range of the share of the image that a rectangle covers, in (0, 1].
        ratio: largest ratio of the sides of a rectangle, at least 1.
    """

    def __init__(
        self, count: int = 1, area_min: float = 0.02, area_max: float = 0.2, ratio: float = 3.0
    ):
        super().__init__()
        if count < 0 or not 0 < area_min <= area_max <= 1 or ratio < 1:
            raise ValueError(
                f"RandomErase: expected count >= 0, 0 < area_min <= area_max <= 1 and ratio >= 1, "
                f"found {count}, {area_min}, {area_max} and {ratio}"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        rectangles = []
        for _ in range(self.count):
            area = self._rand_range(self.area_min, self.area_max) * height * width
            stretch = np.exp(self._rand_range(-np.log(self.ratio), np.log(self.ratio)))
            h = min(round(np.sqrt(area * stretch)), height)
            w = min(round(np.sqrt(area / stretch)), width)
            y = int(self._rand_range(0, height - h + 1))
            x = int(self._rand_range(0, width - w + 1))
            rectangles.append((y, x, h, w, self._rand_range(0, 256, size=image.shape[2:])))
        return T.ColorTransform(functools.partial(_paint, rectangles=rectangles))


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _paint(image: np.ndarray, rectangles: list) -> np.ndarray:
    image = image.copy()
    for y, x, h, w, color in rectangles:
        image[y : y + h, x : x + w] = color.astype(image.dtype)
    return image
