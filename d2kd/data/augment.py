"""Strong augmentation beside Detectron2's: boxes stay as they are, pixels suffer."""

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
    """Paint rectangles in random colours over the image (Random Erasing, arXiv 1708.04896, without
    regard to boxes; the colour is one for the rectangle).

    Args:
        count: rectangles.
        area_min, area_max: range of each one's share of the image.
        ratio: largest ratio of its sides.
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
