"""Draw the images of the demo set: handwritten digits on photographs.

Labels and pixels are the same on every machine: each image has its own `RandomState` (NumPy
guarantees this stream), seeded by split and index, and all arithmetic is in float64, rounded once
at the end. Sizes are in pixels, colors in 0..255.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

RECIPE = 1  # raise it when pixels or labels change, so that existing folders are made again
SIDE = 128  # height and width of every image
CLASSES = [str(digit) for digit in range(10)]


class Split(NamedTuple):
    size: int  # number of images
    sha256: str  # first 16 digits of the digest of pixels and annotations
    pool: str = "train"  # digits and regions of photographs that it may use: "train" or "val"
    domain: str = "clear"
    labeled: bool = True


SPLITS = {  # the order is part of the seed: only append
    "demo_train": Split(3000, "0eec896441ab9f08"),
    "demo_val": Split(400, "ff0f872d30fd3a45", pool="val"),
    "demo_unlabeled": Split(1500, "2eb2d45be11c6e78", labeled=False),
    "demo_fog_train": Split(800, "58cf19ee4f5e74c7", domain="fog", labeled=False),
    "demo_fog_val": Split(200, "649987f304e8f574", pool="val", domain="fog"),
    "demo_night_train": Split(800, "6e56d486c1fe6078", domain="night", labeled=False),
    "demo_night_val": Split(200, "73a2e815b48f8648", pool="val", domain="night"),
}
# Indices of digits. "val" has the last ones, because neighbors may be of the same writer.
DIGITS = {"train": range(1437), "val": range(1437, 1797)}
TRAIN_SHARE = 0.65  # of the width of each photograph; "val" uses the rest
# PNG files only: the pixels of a JPEG file depend on the decoder.
PHOTOS = ["astronaut", "chelsea", "coffee", "immunohistochemistry", "stereo_motorcycle",
          "brick", "camera", "coins", "grass", "gravel", "moon"]  # fmt: skip


@lru_cache(maxsize=1)
def load_material() -> tuple[np.ndarray, np.ndarray, dict[str, list[np.ndarray]]]:
    """The digits (1797, 8, 8) with ink in 0..1, their classes (1797,), and pool -> photographs
    (H, W, 3). Colored photographs are listed twice, because there are fewer of them."""
    try:
        from skimage import data
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"demo set: expected the packages scikit-learn and scikit-image, found no "
            f"{error.name}. Run `pip install scikit-learn scikit-image`."
        ) from None
    photos: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for name in PHOTOS:
        photo = getattr(data, name)()
        photo = photo[0] if isinstance(photo, tuple) else photo  # the left image of a stereo pair
        photo = np.stack([photo] * 3, axis=-1) if photo.ndim == 2 else photo[..., :3]
        cut = int(TRAIN_SHARE * photo.shape[1])
        for pool, part in (("train", photo[:, :cut]), ("val", photo[:, cut:])):
            photos[pool] += [part] * (2 if np.ptp(photo.mean(axis=(0, 1))) > 1 else 1)
    digits = load_digits()
    return digits.images / 16.0, digits.target, photos


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, with aligned pixel centers and repeated edges: (H, W, ...) -> (side, side, ...)."""
    for axis, size in enumerate(image.shape[:2]):
        where = ((np.arange(side) + 0.5) * size / side - 0.5).clip(0, size - 1)
        low = np.floor(where).astype(int)
        weight = (where - low).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        high = image.take(np.minimum(low + 1, size - 1), axis)
        image = image.take(low, axis) * (1 - weight) + high * weight
    return image


def _around(y: float, x: float, reach: float) -> tuple[tuple[slice, slice], Any, Any]:
    """The window of the image around a point, and the offsets (h, 1) and (1, w) of its pixels."""
    rows, cols = (slice(max(0, int(c - reach)), min(SIDE, int(c + reach) + 2)) for c in (y, x))
    dy, dx = (np.arange(s.start, s.stop) + 0.5 - c for s, c in ((rows, y), (cols, x)))
    return (rows, cols), dy[:, None], dx[None, :]


def render_digit(
    digit: np.ndarray, size: float, angle: float, y: float, x: float
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Enlarge, rotate and place one digit.

    Args:
        digit: (8, 8) ink in 0..1.
        size: height of its 8 rows in the image.
        angle: in radians.
        y, x: its center in the image.

    Returns:
        (h, w) coverage in 0..1, and the window of the image that it covers.
    """
    # Catmull-Rom from 12 samples (8 and a margin of 2 on each side) to 96: exact in float64.
    t = np.abs((np.arange(96)[:, None] + 0.5) / 8 - 0.5 - np.arange(12))
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    cubic = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    fine = cubic @ np.pad(digit, 2) @ cubic.T
    # Rotate and scale by bilinear sampling of the fine digit.
    window, dy, dx = _around(y, x, 0.75 * size + 1)
    sin, cos, zoom = math.sin(angle), math.cos(angle), 64 / size
    v = ((cos * dy - sin * dx) * zoom + 47.5).clip(0, 94.999)
    u = ((sin * dy + cos * dx) * zoom + 47.5).clip(0, 94.999)
    r, c = v.astype(int), u.astype(int)
    a, b = v - r, u - c
    ink = (1 - a) * ((1 - b) * fine[r, c] + b * fine[r, c + 1])
    ink += a * ((1 - b) * fine[r + 1, c] + b * fine[r + 1, c + 1])
    return ((ink - 0.5) * max(1.5, size / 9) + 0.5).clip(0, 1), window


def _background(rng: np.random.RandomState, regions: list[np.ndarray]) -> np.ndarray:
    """A random crop of a random photograph, perhaps mirrored, with other contrast and tint."""
    photo = regions[rng.randint(len(regions))]
    side = rng.randint(96, min(192, *photo.shape[:2]) + 1)
    y, x = (rng.randint(n - side + 1) for n in photo.shape[:2])
    crop = _resize(photo[y : y + side, x : x + side], SIDE)
    crop = crop[:, ::-1] if rng.rand() < 0.5 else crop
    mean = crop.mean(axis=(0, 1))
    tint = rng.uniform(0.7, 1.2, 3) if np.ptp(mean) < 1 else rng.uniform(0.9, 1.1, 3)
    return (mean + (crop - mean) * rng.uniform(0.6, 1.0)) * rng.uniform(0.7, 1.15) * tint


def _clutter(rng: np.random.RandomState, image: np.ndarray) -> None:
    """Draw 1 to 5 shapes that are not digits, in place: arcs, blobs, hooks."""
    for _ in range(rng.randint(1, 6)):
        color, opacity = rng.uniform(0, 255, 3), rng.uniform(0.4, 0.95)
        y, x = rng.uniform(0, SIDE, 2)
        size, angle = rng.uniform(5, 24), rng.uniform(0, 2 * math.pi)
        window, dy, dx = _around(y, x, size + 4)
        along = math.cos(angle) * dx + math.sin(angle) * dy
        across = math.cos(angle) * dy - math.sin(angle) * dx
        kind, bend, ratio = rng.randint(3), rng.uniform(0.3, 1.0), rng.uniform(0.25, 0.6)
        if kind == 0:  # an arc: a ring that is cut by a line
            ring = np.abs(np.sqrt(along**2 + across**2) - 0.8 * size) - rng.uniform(0.8, 2.2)
            distance = np.maximum(ring, along - (bend - 0.5) * size)
        elif kind == 1:  # a blob
            distance = np.sqrt(along**2 + (across / ratio) ** 2) - size * bend
        else:  # a hook: two strokes that meet
            bar = np.maximum(np.abs(along) - 0.8 * size, np.abs(across))
            foot = np.maximum(np.abs(along - 0.8 * size), np.abs(across - size / 4) - size / 4)
            distance = np.minimum(bar, foot) - rng.uniform(0.8, 2.2)
        cover = opacity * (0.5 - distance).clip(0, 1)[..., None]
        image[window] += cover * (color - image[window])


def _digits(rng: np.random.RandomState, image: np.ndarray, pool: str) -> list[dict[str, Any]]:
    """Draw 1 to 6 digits of ``pool``, in place; return their labels, see `draw`."""
    images, classes, _ = load_material()
    labels: list[dict[str, Any]] = []
    inks: list[np.ndarray] = []
    for _ in range(rng.randint(1, 7)):
        sample = DIGITS[pool][rng.randint(len(DIGITS[pool]))]
        size, angle = rng.uniform(14, 48), math.radians(rng.uniform(-25, 25))
        opacity, contrast = rng.uniform(0.6, 1.0), rng.uniform(50, 110)
        for _ in range(8):  # look for a place where the digits hardly overlap
            y, x = rng.uniform(0.42 * size, SIDE - 0.42 * size, 2)
            cover, window = render_digit(images[sample], size, angle, y, x)
            ink = np.zeros((SIDE, SIDE), dtype=bool)
            ink[window] = cover >= 0.5
            if all((ink & other).sum() <= 0.15 * min(ink.sum(), other.sum()) for other in inks):
                break
        else:
            continue
        cover = cover[..., None]
        behind = (image[window] * cover).sum(axis=(0, 1)) / cover.sum()
        colors = rng.uniform(0, 255, (12, 3))
        gaps = np.abs(colors - behind).mean(axis=1)  # the first with enough contrast, or the best
        color = colors[(gaps >= min(contrast, gaps.max())).argmax()]
        image[window] += opacity * cover * (color - image[window])
        inks.append(ink)
        ys, xs = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        box = [int(n) for n in (xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1)]
        labels.append({"category_id": int(classes[sample]) + 1, "bbox": box, "iscrowd": 0,
                       "area": box[2] * box[3], "digit": sample})  # fmt: skip
    return labels


def fog(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Fade a (H, H, 3) image to light gray, with a smooth random density."""
    density = _resize(rng.uniform(0.25, 0.8, (4, 4)), len(image))[..., None]
    return image * (1 - density) + rng.uniform(185, 225) * density


def night(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Darken a (H, W, 3) image: gamma, exposure, a bluish tint, sensor noise."""
    cast = np.array([0.75, 0.85, 1.1]) * rng.uniform(0.9, 1.1, 3)
    dark = (image.clip(0, 255) / 255) ** rng.uniform(1.1, 1.5) * rng.uniform(85, 170) * cast
    return dark + rng.randn(*image.shape) * rng.uniform(3, 8)


def draw(split: str, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Image ``index`` of ``split``, (H, W, 3) uint8 RGB, and its digits as COCO annotations.

    ``bbox`` (x, y, width, height) is tight around the ink of a digit inside the image, including
    ink that a later digit hides. ``area`` is the area of the box, ``digit`` is scikit-learn's
    sample index.
    """
    spec = SPLITS[split]
    rng = np.random.RandomState([list(SPLITS).index(split), index])
    image = _background(rng, load_material()[2][spec.pool])
    _clutter(rng, image)
    annotations = _digits(rng, image, spec.pool)
    if spec.domain != "clear":
        image = {"fog": fog, "night": night}[spec.domain](rng, image.clip(0, 255))
    image = image + rng.randn(*image.shape) * rng.uniform(3, 10)
    return np.rint(image).clip(0, 255).astype(np.uint8), annotations
