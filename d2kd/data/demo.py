"""The built-in demo set: handwritten digits in photographs, made locally in under a minute.

Nothing is downloaded: scikit-learn's package holds the digits, scikit-image's the photographs.
Labels and pixels are the same wherever the set is made: each image has its own `RandomState`
(NumPy keeps that stream frozen) seeded by split and index, all arithmetic is float64 with one
rounding at the end, all files are lossless. Sizes are in pixels, colours in 0..255.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

RECIPE = 1  # raise it when pixels or labels change: older folders are then made again
SIDE = 128  # height and width of every image
CLASSES = [str(digit) for digit in range(10)]


class Split(NamedTuple):
    size: int  # number of images
    sha256: str  # of pixels and annotations, the first 16 digits
    pool: str = "train"  # which digits and which regions of the photographs it may show
    domain: str = "clear"
    labelled: bool = True


SPLITS = {  # the order is part of the seed: append only
    "demo_train": Split(3000, "0eec896441ab9f08"),
    "demo_val": Split(400, "ff0f872d30fd3a45", pool="val"),
    "demo_unlabeled": Split(1500, "2eb2d45be11c6e78", labelled=False),
    "demo_fog_train": Split(800, "58cf19ee4f5e74c7", domain="fog", labelled=False),
    "demo_fog_val": Split(200, "649987f304e8f574", pool="val", domain="fog"),
    "demo_night_train": Split(800, "6e56d486c1fe6078", domain="night", labelled=False),
    "demo_night_val": Split(200, "73a2e815b48f8648", pool="val", domain="night"),
}
# Sample indices. Val's are the tail, because neighbours may share their writer.
DIGITS = {"train": range(1437), "val": range(1437, 1797)}
TRAIN_SHARE = 0.65  # of each photograph's width; val's crops come from the rest
# PNG files only: a JPEG decoder does not promise the same pixels everywhere.
PHOTOS = ["astronaut", "chelsea", "coffee", "immunohistochemistry", "stereo_motorcycle",
          "brick", "camera", "coins", "grass", "gravel", "moon"]  # fmt: skip


@lru_cache(maxsize=1)
def load_material() -> tuple[np.ndarray, np.ndarray, dict[str, list[np.ndarray]]]:
    """The digits (1797, 8, 8) with ink in 0..1, their classes (1797,), and pool -> photographs
    (H, W, 3); the coloured ones are in there twice, because they are fewer."""
    try:
        from skimage import data
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The demo set needs scikit-learn and scikit-image: pip install d2kd[demo]"
        ) from error
    photos: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for name in PHOTOS:
        photo = getattr(data, name)()
        photo = photo[0] if isinstance(photo, tuple) else photo  # the left one of a stereo pair
        photo = np.stack([photo] * 3, axis=-1) if photo.ndim == 2 else photo[..., :3]
        cut = int(TRAIN_SHARE * photo.shape[1])
        for pool, part in (("train", photo[:, :cut]), ("val", photo[:, cut:])):
            photos[pool] += [part] * (2 if np.ptp(photo.mean(axis=(0, 1))) > 1 else 1)
    digits = load_digits()
    return digits.images / 16.0, digits.target, photos


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, pixel centres aligned, edges repeated: (H, W, ...) -> (side, side, ...)."""
    for axis, size in enumerate(image.shape[:2]):
        where = ((np.arange(side) + 0.5) * size / side - 0.5).clip(0, size - 1)
        low = np.floor(where).astype(int)
        weight = (where - low).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        high = image.take(np.minimum(low + 1, size - 1), axis)
        image = image.take(low, axis) * (1 - weight) + high * weight
    return image


def _around(y: float, x: float, reach: float) -> tuple[tuple[slice, slice], Any, Any]:
    """The window of the image around a point, and its pixels' offsets (h, 1) and (1, w)."""
    rows, cols = (slice(max(0, int(c - reach)), min(SIDE, int(c + reach) + 2)) for c in (y, x))
    dy, dx = (np.arange(s.start, s.stop) + 0.5 - c for s, c in ((rows, y), (cols, x)))
    return (rows, cols), dy[:, None], dx[None, :]


def render_digit(
    digit: np.ndarray, size: float, angle: float, y: float, x: float
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Enlarge, turn and place one digit, (8, 8) ink in 0..1.

    Args: size: what its 8 rows become. angle: in radians. y, x: its centre in the image.
    Returns: (h, w) coverage in 0..1, and the window of the image that it covers.
    """
    # Catmull-Rom, 12 samples (two of margin on each side) to 96: exact in float64.
    t = np.abs((np.arange(96)[:, None] + 0.5) / 8 - 0.5 - np.arange(12))
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    cubic = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    fine = cubic @ np.pad(digit, 2) @ cubic.T
    # Turned and scaled: bilinear in the fine digit.
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
    """A random crop of a random photograph, mirrored, faded, tinted: (H, W, 3)."""
    photo = regions[rng.randint(len(regions))]
    side = rng.randint(96, min(192, *photo.shape[:2]) + 1)
    y, x = (rng.randint(n - side + 1) for n in photo.shape[:2])
    crop = _resize(photo[y : y + side, x : x + side], SIDE)
    crop = crop[:, ::-1] if rng.rand() < 0.5 else crop
    mean = crop.mean(axis=(0, 1))
    tint = rng.uniform(0.7, 1.2, 3) if np.ptp(mean) < 1 else rng.uniform(0.9, 1.1, 3)
    return (mean + (crop - mean) * rng.uniform(0.6, 1.0)) * rng.uniform(0.7, 1.15) * tint


def _clutter(rng: np.random.RandomState, image: np.ndarray) -> None:
    """Draw 1 to 5 things that are no digits, in place: bows, blobs, hooks."""
    for _ in range(rng.randint(1, 6)):
        color, opacity = rng.uniform(0, 255, 3), rng.uniform(0.4, 0.95)
        y, x = rng.uniform(0, SIDE, 2)
        size, angle = rng.uniform(5, 24), rng.uniform(0, 2 * math.pi)
        window, dy, dx = _around(y, x, size + 4)
        along = math.cos(angle) * dx + math.sin(angle) * dy
        across = math.cos(angle) * dy - math.sin(angle) * dx
        kind, bend, ratio = rng.randint(3), rng.uniform(0.3, 1.0), rng.uniform(0.25, 0.6)
        if kind == 0:  # a bow: what a chord leaves of a ring
            ring = np.abs(np.sqrt(along**2 + across**2) - 0.8 * size) - rng.uniform(0.8, 2.2)
            distance = np.maximum(ring, along - (bend - 0.5) * size)
        elif kind == 1:  # a blob
            distance = np.sqrt(along**2 + (across / ratio) ** 2) - size * bend
        else:  # a hook: two bars that meet
            bar = np.maximum(np.abs(along) - 0.8 * size, np.abs(across))
            foot = np.maximum(np.abs(along - 0.8 * size), np.abs(across - size / 4) - size / 4)
            distance = np.minimum(bar, foot) - rng.uniform(0.8, 2.2)
        cover = opacity * (0.5 - distance).clip(0, 1)[..., None]
        image[window] += cover * (color - image[window])


def _digits(rng: np.random.RandomState, image: np.ndarray, pool: str) -> list[dict[str, Any]]:
    """Draw 1 to 6 digits of ``pool``, in place; return their labels, see `draw`."""
    images, classes, _ = load_material()
    found, seen = [], []
    for _ in range(rng.randint(1, 7)):
        sample = DIGITS[pool][rng.randint(len(DIGITS[pool]))]
        size, angle = rng.uniform(14, 48), math.radians(rng.uniform(-25, 25))
        opacity, contrast = rng.uniform(0.6, 1.0), rng.uniform(50, 110)
        for _ in range(8):  # look for a place where digits hide little of each other
            y, x = rng.uniform(0.42 * size, SIDE - 0.42 * size, 2)
            cover, window = render_digit(images[sample], size, angle, y, x)
            ink = np.zeros((SIDE, SIDE), dtype=bool)
            ink[window] = cover >= 0.5
            if all((ink & other).sum() <= 0.15 * min(ink.sum(), other.sum()) for other in seen):
                break
        else:
            continue
        cover = cover[..., None]
        behind = (image[window] * cover).sum(axis=(0, 1)) / cover.sum()
        colors = rng.uniform(0, 255, (12, 3))
        gaps = np.abs(colors - behind).mean(axis=1)  # the first that stands out, or the best
        color = colors[(gaps >= min(contrast, gaps.max())).argmax()]
        image[window] += opacity * cover * (color - image[window])
        seen.append(ink)
        ys, xs = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        box = [int(n) for n in (xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1)]
        found.append({"category_id": int(classes[sample]) + 1, "bbox": box, "iscrowd": 0,
                      "area": box[2] * box[3], "digit": sample})  # fmt: skip
    return found


def fog(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Fade a (H, H, 3) image towards a light grey, by a smooth random density."""
    density = _resize(rng.uniform(0.25, 0.8, (4, 4)), len(image))[..., None]
    return image * (1 - density) + rng.uniform(185, 225) * density


def night(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Darken a (H, W, 3) image: gamma, exposure, a bluish cast, sensor noise."""
    cast = np.array([0.75, 0.85, 1.1]) * rng.uniform(0.9, 1.1, 3)
    dark = (image.clip(0, 255) / 255) ** rng.uniform(1.1, 1.5) * rng.uniform(85, 170) * cast
    return dark + rng.randn(*image.shape) * rng.uniform(3, 8)


def draw(split: str, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Image ``index`` of ``split``, (H, W, 3) uint8 RGB, and its digits as COCO annotations.

    ``bbox`` (x, y, width, height) is tight around a digit's ink inside the image, also where a
    later digit hides it; ``area`` is the box's; ``digit`` is scikit-learn's sample index.
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


def _write_split(folder: Path, split: str, size: int) -> str:
    """Write images and JSON of a split; return the sha256 of its pixels and annotations."""
    from d2kd.progress import track

    def write(index: int) -> tuple[bytes, list[dict[str, Any]]]:
        image, annotations = draw(split, index)
        Image.fromarray(image).save(folder / split / f"{index:06d}.png", compress_level=1)
        return hashlib.sha256(image.tobytes()).digest(), annotations

    (folder / split).mkdir()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy and zlib free the GIL
        drawn = list(track(pool.map(write, range(size)), size, split))
    labels = [{"image_id": i, **label} for i in range(size) for label in drawn[i][1]]
    coco = {
        "images": [{"id": i, "file_name": f"{i:06d}.png", "width": SIDE, "height": SIDE}
                   for i in range(size)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }  # fmt: skip
    if SPLITS[split].labelled:
        coco["annotations"] = [{"id": i, **label} for i, label in enumerate(labels, start=1)]
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    everything = [pixels for pixels, _ in drawn] + [json.dumps(labels, sort_keys=True).encode()]
    return hashlib.sha256(b"".join(everything)).hexdigest()[:16]


def _is_made(folder: Path, sizes: Mapping[str, int] | None) -> bool:
    """Whether ``folder`` is a whole demo set of this recipe (and of these sizes, if given)."""
    if (folder / "made.json").exists():
        made = json.loads((folder / "made.json").read_text())
        return made["recipe"] == RECIPE and sizes in (None, made["sizes"])
    if folder.exists():
        raise FileExistsError(f"{folder} is no demo set of d2kd (no made.json): move it away")
    return False


def _folder(root: str | Path | None) -> Path:
    root = root or os.environ.get("DETECTRON2_DATASETS", "datasets")
    return Path(os.path.abspath(os.path.expanduser(root)), "demo")


def make_demo(root: str | Path | None = None, sizes: Mapping[str, int] | None = None) -> Path:
    """Make the demo set in ``root``/demo unless it is there, and return that folder.

    It is built beside its place and renamed when whole. Of two processes that build it at the
    same time, the second to finish uses what the first one made.

    Args:
        root: default: $DETECTRON2_DATASETS, or ``datasets``.
        sizes: split -> number of images, for a smaller set (it replaces one of other sizes).
            None takes a set of any size that is there, and makes the full one where none is.
    """
    folder = _folder(root)
    if _is_made(folder, sizes):
        return folder
    load_material()  # a missing package is found before anything is written
    folder.parent.mkdir(parents=True, exist_ok=True)
    sizes = sizes or {split: spec.size for split, spec in SPLITS.items()}
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=folder.parent) as work:
        logger.info(f"Making the demo set in {folder}: about a minute, once")
        new = Path(work, "new")
        (new / "annotations").mkdir(parents=True)
        digests = {split: _write_split(new, split, size) for split, size in sizes.items()}
        made = {"recipe": RECIPE, "sizes": dict(sizes), "sha256": digests}
        (new / "made.json").write_text(json.dumps(made, indent=1))
        for split, found in digests.items():
            if sizes[split] == SPLITS[split].size and found != SPLITS[split].sha256:
                wanted = SPLITS[split].sha256
                logger.warning(f"{split} is not as published: sha256 {found}, expected {wanted}")
        try:
            if folder.exists() and not _is_made(folder, sizes):  # an older recipe, another size
                folder.rename(Path(work, "old"))
            new.rename(folder)
        except OSError:  # another process was faster
            if not _is_made(folder, sizes):
                raise
    return folder


def _load(root: str | Path | None, split: str) -> list[dict[str, Any]]:
    from detectron2.data.datasets import load_coco_json

    folder = make_demo(root)
    return load_coco_json(f"{folder}/annotations/{split}.json", f"{folder}/{split}", split)


def load_truth(root: str | Path | None, split: str) -> list[dict[str, Any]]:
    """A split with its labels, also where it has none: drawn again, to tell how good others are.

    Args:
        root: see `make_demo`.
    """
    from detectron2.structures import BoxMode

    images = sorted(_load(root, split), key=lambda image: image["image_id"])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = pool.map(lambda image: draw(split, image["image_id"])[1], images)
        return [
            {
                **image,
                "annotations": [
                    {
                        **label,
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": label["category_id"] - 1,
                    }
                    for label in labels
                ],
            }
            for image, labels in zip(images, drawn, strict=True)
        ]


def register_demo(root: str | Path | None = None) -> None:
    """Register all splits with Detectron2. The data are made when a split is first loaded.

    Those without labels are there a second time with them, as `<split>_truth`.

    Calling it again is fine; with another root, the last call holds. Detectron2's COCOEvaluator
    reads the JSON when it is built: build the test loader before it, or call `make_demo`.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    folder = _folder(root)
    truths = {f"{split}_truth" for split, spec in SPLITS.items() if not spec.labelled}
    for name in (*SPLITS, *truths):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)
    for name in truths:
        split = name.removesuffix("_truth")
        DatasetCatalog.register(name, partial(load_truth, folder.parent, split))
        MetadataCatalog.get(name).set(thing_classes=CLASSES)
    for split in SPLITS:
        DatasetCatalog.register(split, partial(_load, folder.parent, split))
        MetadataCatalog.get(split).set(
            json_file=f"{folder}/annotations/{split}.json",
            image_root=f"{folder}/{split}",
            evaluator_type="coco",
            thing_classes=CLASSES,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASSES))},
        )
