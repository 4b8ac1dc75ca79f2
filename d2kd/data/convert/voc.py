"""Pascal VOC's XML, one file an image.

M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010. A box is given
by its first and its last pixel, counted from 1.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .coco import Box, Dataset, build_dataset, check_names
from .splits import Split, divide, find_pairs
from .text import Problems, read_number

__all__ = ["convert_voc"]


def convert_voc(
    images: str | Path,
    annotations: str | Path,
    splits: Sequence[Split] = (),
    *,
    classes: Sequence[str] | None = None,
    zero_based: bool = False,
    ignore_difficult: bool = False,
    clip: bool = False,
) -> Dataset:
    """Convert labels in Pascal VOC's XML.

    Images are in the order of their file names, boxes in the order of the file. An object marked
    as difficult has the further key `difficult`, which COCO's evaluation does not know.

    Args:
        images: folder of the images; folders in it are searched too.
        annotations: folder of the XML files, named as the images.
        splits: default: one split "train" of all images.
        classes: names of the categories in the order of their ids; default: sorted names.
        zero_based: boxes are x0, y0, x1, y1 in pixels from 0, as some tools write them.
        ignore_difficult: give difficult objects `iscrowd` 1. Then evaluation does not count
            detections on them, as in VOC's own, and training leaves them out.
        clip: cut boxes at the border of their image, however far they go beyond it.

    Raises:
        ValueError: there is an error in a file; see `build_dataset` and `divide`.
    """
    if classes is not None:
        classes = check_names(classes, "classes")
    problems = Problems()
    pairs = find_pairs(Path(images), Path(annotations), ".xml")
    divided, notes = divide(pairs, splits, problems)
    for pair in (pair for found in divided.values() for pair in found):
        if pair.labels is None:
            text = f"expected an XML file in {annotations}, found none"
            problems.add(pair.image or pair.key, None, text)
    return build_dataset(
        {name: [pair.sample() for pair in found] for name, found in divided.items()},
        partial(_read, origin=0 if zero_based else 1, ignore_difficult=ignore_difficult),
        classes,
        clip=clip,
        problems=problems,
        notes=notes,
    )


def _read(
    file: Path, size: tuple[int, int], problems: Problems, origin: int, ignore_difficult: bool
) -> list[Box]:
    """Read the objects of an XML file. `origin` is the number of the first pixel."""
    try:
        content = file.read_bytes()
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, OSError) as error:
        position = getattr(error, "position", None)
        line = position[0] if position else None
        problems.add(file, line, f"expected XML, found: {error}")
        return []
    stated = [root.findtext(f"size/{side}", "0").strip() for side in ("width", "height")]
    try:
        numbers = tuple(read_number(text) for text in stated)
    except ValueError:
        numbers = (-1, -1)
    if any(numbers) and numbers != size:  # some tools write no size, or zeros
        text = f"expected the size of the image, {size[0]} x {size[1]}, found {' x '.join(stated)}"
        problems.add(file, None, text)
        return []  # its boxes are for another image
    lines = [content.count(b"\n", 0, m.start()) + 1 for m in re.finditer(rb"<object[\s>]", content)]
    boxes = []
    objects = root.findall("object")
    for i, element in enumerate(objects):
        line = lines[i] if len(lines) == len(objects) else None
        name = element.findtext("name", "").strip()
        difficult = element.findtext("difficult", "0").strip() == "1"
        try:
            if not name:
                raise ValueError("expected the name of its class, found none")
            x0, y0, x1, y1 = (_number(element, key) for key in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            problems.add(file, line, f"object {i + 1}: {error}")
            continue
        corners = (x0 - origin, y0 - origin, x1, y1)
        extra = {"difficult": 1} if difficult else {}
        boxes.append(Box(name, corners, line, ignored=difficult and ignore_difficult, extra=extra))
    return boxes


def _number(element: ElementTree.Element, key: str) -> float:
    try:
        return read_number(element.findtext(f"bndbox/{key}"))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
