"""Check boxes against their images, and number images, boxes and categories in COCO's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..images import image_size
from .text import Problems

__all__ = ["Box", "Dataset", "Reader", "Sample", "build_dataset", "check_names"]

# Pixels by which a box may go beyond its image. Tools that count from 0 where the format counts
# from 1 do that, and text formats that round.
TOLERANCE = 1.0
ROUND_OFF = 0.01  # pixels; less is not worth a warning


@dataclass(frozen=True)
class Box:
    """A labeled box.

    Attributes:
        category: its name.
        corners: x0, y0, x1, y1 in pixels. The first pixel of an image covers 0 to 1.
        line: line of the file, for messages; None if it is not known.
        ignored: written as `iscrowd`.
        extra: further keys of the annotation.
    """

    category: str
    corners: tuple[float, float, float, float]
    line: int | None = None
    ignored: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """An image and the file of its labels.

    Attributes:
        name: `file_name` in COCO's format: the path below the split's folder, with slashes.
        image: the file of the image.
        labels: the file of its boxes; None if there is none and the image has no boxes.
    """

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Dataset:
    """A converted dataset.

    Attributes:
        splits: name -> content of the JSON file: images, annotations and categories. Ids of each
            split are 1, 2, ...
        files: name -> (source, `file_name`) of the images.
        notes: sentences that tell the user what was left out or changed.
    """

    splits: dict[str, dict[str, list[dict]]]
    files: dict[str, list[tuple[Path, str]]]
    notes: list[str]


# Reads a file of labels of an image of some width and height. It adds errors to the problems, and
# returns the boxes that it understands.
Reader = Callable[[Path, tuple[int, int], Problems], Iterable[Box]]


def check_names(names: Sequence[str], where: str) -> list[str]:
    """The names of the categories without spaces around them.

    Raises:
        ValueError: they are not different, or one is empty.
    """
    names = [name.strip() for name in names]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{where}: expected different names of categories, none empty, found {names}"
        )
    return names


def build_dataset(
    splits: Mapping[str, Sequence[Sample]],
    read: Reader,
    categories: Sequence[str] | None,
    *,
    clip: bool,
    problems: Problems,
    notes: Iterable[str] = (),
) -> Dataset:
    """Read all labels and the sizes of all images.

    A box that goes beyond its image by up to one pixel is cut at the image's border, and counted.
    More is an error without `clip`. A box without a width or height, or outside the image, always
    is.

    Args:
        splits: name of a split -> its images in the order of their ids.
        read: reads the labels of an image.
        categories: names in the order of their ids; None for the sorted names of all boxes.
        clip: cut boxes at the border of their image, however far they go beyond it.
        problems: errors that were found before; new ones are added.
        notes: sentences that the dataset has before those from here.

    Raises:
        ValueError: there is an error in a file.
    """
    sizes: dict[str, list[tuple[int, int]]] = {}
    boxes: dict[str, list[list[Box]]] = {}
    cut: list[float] = []
    for split, samples in splits.items():
        sizes[split], boxes[split] = [], []
        for sample in samples:
            try:
                size = image_size(sample.image)
            except OSError as error:
                problems.add(sample.image, None, f"expected an image, found: {error}")
                continue
            kept = []
            for box in read(sample.labels, size, problems) if sample.labels else ():
                try:
                    corners, excess = _fit(box, size, categories, clip)
                except ValueError as error:
                    problems.add(sample.labels or sample.image, box.line, str(error))
                    continue
                kept.append(replace(box, corners=corners))
                if excess > ROUND_OFF:
                    cut.append(excess)
            sizes[split].append(size)
            boxes[split].append(kept)
    problems.check()
    if categories is None:
        every = {box.category for split in boxes.values() for found in split for box in found}
        categories = check_names(sorted(every), "labels")
    notes = list(notes)
    if cut:
        notes.append(
            f"{len(cut)} boxes were cut at the border of their image, by up to {max(cut):.4g} "
            f"pixels"
        )
    ids = {name: number for number, name in enumerate(categories, start=1)}
    return Dataset(
        splits={s: _coco(splits[s], sizes[s], boxes[s], ids) for s in splits},
        files={s: [(sample.image, sample.name) for sample in splits[s]] for s in splits},
        notes=notes,
    )


def _fit(
    box: Box, size: tuple[int, int], categories: Sequence[str] | None, clip: bool
) -> tuple[tuple[float, float, float, float], float]:
    """The part of a box inside its image, and the pixels by which it goes beyond the image."""
    if categories is not None and box.category not in categories:
        raise ValueError(f"expected a class of {', '.join(categories)}, found {box.category!r}")
    corners, (width, height) = box.corners, size
    x0, y0, x1, y1 = corners
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"expected a box with a width and a height, found {x1 - x0:g} x {y1 - y0:g} pixels"
        )
    inside = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    excess = max(abs(a - b) for a, b in zip(inside, corners, strict=True))
    where = f"found x {x0:g} to {x1:g}, y {y0:g} to {y1:g}"
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise ValueError(f"expected a box inside the image of {width} x {height} pixels, {where}")
    if excess > TOLERANCE and not clip:
        raise ValueError(
            f"expected a box inside the image of {width} x {height} pixels, {where}. Correct it, "
            f"or give --clip to cut such boxes at the border"
        )
    return inside, excess


def _coco(
    samples: Sequence[Sample],
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Sequence[Box]],
    categories: Mapping[str, int],
) -> dict[str, list[dict]]:
    """One split in COCO's format."""
    images: list[dict] = []
    annotations: list[dict] = []
    for number, (sample, size, found) in enumerate(zip(samples, sizes, boxes, strict=True), 1):
        width, height = size
        images.append({"id": number, "file_name": sample.name, "width": width, "height": height})
        for box in found:
            x0, y0, x1, y1 = box.corners
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories[box.category],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(box.ignored),
                    **box.extra,
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
