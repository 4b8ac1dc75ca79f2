"""YOLO's text, one file an image, one box a line: class x y width height.

The class counts from 0. x and y are the center of the box. All four are fractions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from .coco import Box, Dataset, build_dataset, check_names
from .splits import Split, divide, find_pairs
from .text import Problems, read_lines_of, read_number, read_numbered_lines, read_text

__all__ = ["convert_yolo"]


def convert_yolo(
    images: str | Path,
    labels: str | Path,
    names: str | Path,
    splits: Sequence[Split] = (),
    *,
    clip: bool = False,
) -> Dataset:
    """Convert labels in YOLO's text format.

    Images are in the order of their file names, boxes in the order of the file. An image without a
    file of labels has no boxes, which is the format's rule. Such images are counted in a note.

    Args:
        images: folder of the images; folders in it are searched too.
        labels: folder of the text files, named as the images. A classes.txt is not read.
        names: data.yaml, or a text file with one name a line. Category ids are classes plus 1.
        splits: default: one split "train" of all images.
        clip: cut boxes at the border of their image, however far they go beyond it.

    Raises:
        ValueError: there is an error in a file; see `build_dataset` and `divide`.
    """
    categories = _read_names(Path(names))
    problems = Problems()
    pairs = find_pairs(Path(images), Path(labels), ".txt")
    pairs = [pair for pair in pairs if pair.image or pair.key != "classes"]
    divided, notes = divide(pairs, splits, problems)
    found = [pair for pairs in divided.values() for pair in pairs]
    if without := sum(pair.labels is None for pair in found):
        if without == len(found):
            raise ValueError(f"{labels}: expected files named as the images, found none")
        notes.append(f"{without} images have no file of labels, and count as images without boxes")
    return build_dataset(
        {name: [pair.sample() for pair in pairs] for name, pairs in divided.items()},
        partial(_read, categories=categories),
        categories,
        clip=clip,
        problems=problems,
        notes=notes,
    )


def _read_names(file: Path) -> list[str]:
    """Names of the classes, in their order."""
    try:
        if file.suffix.lower() not in (".yaml", ".yml"):
            return check_names([line for _, line in read_numbered_lines(file)], str(file))
        content = yaml.safe_load(read_text(file))
    except (ValueError, yaml.YAMLError) as error:
        text = str(error)
        raise ValueError(
            text if text.startswith(str(file)) else f"{file}: expected names of classes; {text}"
        ) from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(
            f"{file}: expected names: a list, or a name for 0, 1, ...; found {names!r}"
        )
    return check_names([str(name) for name in names], str(file))


def _read(
    file: Path, size: tuple[int, int], problems: Problems, categories: Sequence[str]
) -> list[Box]:
    """Read the boxes of an image of some width and height, in pixels."""

    def box(fields: list[str], line: int) -> Box:
        if not fields[0].isdecimal() or int(fields[0]) >= len(categories):
            last = len(categories) - 1
            raise ValueError(f"expected a class from 0 to {last}, found {fields[0]!r}")
        x, y, width, height = values = [read_number(text) for text in fields[1:]]
        if min(values) < 0 or max(values) > 1:
            raise ValueError(f"expected fractions from 0 to 1, found {' '.join(fields[1:])}")
        corners = (
            (x - width / 2) * size[0],
            (y - height / 2) * size[1],
            (x + width / 2) * size[0],
            (y + height / 2) * size[1],
        )
        return Box(categories[int(fields[0])], corners, line)

    return read_lines_of("class x y width height", file, problems, box)
