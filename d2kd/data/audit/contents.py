"""What a set of data holds, as arrays: read from a COCO file, or from Detectron2's dicts.

Shapes: N images, B boxes of all images.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .entries import is_category, is_crowd, is_image, is_usable, lacks_value, refers, size_of
from .images import read_header
from .kinds import Defect

__all__ = [
    "Contents",
    "info_is_needed",
    "load_table",
    "read_coco",
    "read_records",
]


@dataclass
class Contents:
    """The content of one set.

    Attributes:
        files: (N,) paths; "" where a record has none.
        sizes: (N, 2) int, width and height in pixels; 0 where unknown.
        boxes: (B, 4) float64, x, y, width and height in pixels.
        owners: (B,) int, the image of each box.
        labels: (B,) int, the class number of each box.
        crowds: (B,) bool.
        classes: the names; None if the set does not have any.
        defects: what is wrong with the table itself, such as repeated ids.
        breaks_loading: whether Detectron2 cannot load the COCO file before it is repaired.
        searched: the largest class number of "annotated_classes", + 1.
    """

    files: list[str]
    sizes: np.ndarray
    boxes: np.ndarray
    owners: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    classes: list[str] | None
    defects: list[Defect] = field(default_factory=list)
    breaks_loading: bool = False
    searched: int = 0

    def name_box(self, i: int) -> str:
        """A box for a message: its numbers and its image."""
        numbers = ", ".join(f"{x:g}" for x in self.boxes[i])
        width, height = self.sizes[self.owners[i]]
        size = f" of {width} x {height}" if width else ""
        return f"[{numbers}] in {self.files[self.owners[i]] or 'an image without a file'}{size}"


def _first(values: Sequence, wrong: np.ndarray) -> Any:
    return values[int(np.flatnonzero(wrong)[0])]


def _boxes(annotations: Sequence[Mapping], defects: list[Defect], names: Sequence[str]) -> tuple:
    """(B, 4) boxes as they are written, and (B,) bool, which of them are four numbers."""
    raw: list[Any] = [a.get("bbox") for a in annotations]
    good = np.array(
        [isinstance(b, (list, tuple, np.ndarray)) and len(b) == 4 for b in raw], dtype=bool
    )
    kinds = set(map(type, chain.from_iterable(b for b, g in zip(raw, good, strict=True) if g)))
    if not all(issubclass(k, (int, float, np.number)) and k is not bool for k in kinds):
        numbers = (int, float, np.number)
        good &= np.array(
            [g and all(isinstance(x, numbers) for x in b) for b, g in zip(raw, good, strict=True)]
        )
    if not good.all():
        example = f"{_first(raw, ~good)!r} in {_first(names, ~good)}"
        defects.append(Defect("malformed", int((~good).sum()), len(raw), example))
    boxes = np.array([b for b, g in zip(raw, good, strict=True) if g], dtype=np.float64)
    return boxes.reshape(-1, 4), good


def read_coco(path: str, image_root: str) -> Contents:
    """Read a COCO file as Detectron2's `load_coco_json` would, and count what is wrong with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON file, or has no list of images or categories.
    """
    table = load_table(path)
    entries, annotations = table["images"], table.get("annotations")
    defects: list[Defect] = []

    def add(kind: str, count: int, total: int, example: object) -> None:
        if count:
            defects.append(Defect(kind, int(count), total, str(example)))

    if annotations is None:
        add("no_annotations", 1, 1, path)
        annotations = []
    if not isinstance(annotations, list):
        raise ValueError(
            f"{path}: expected a file in COCO's format with a list of annotations, found "
            f"{type(annotations).__name__}."
        )
    bad = [x for x in entries if not is_image(x)]
    _add_incomplete("image", bad, len(entries), ("id", "file_name"), add)
    entries = [x for x in entries if is_image(x)] if bad else entries
    images: dict[Any, dict] = {}
    twice: list[tuple[dict, dict]] = []
    other: list[tuple[dict, dict]] = []
    for x in entries:
        before = images.setdefault(x["id"], x)
        if before is not x:
            (twice if before["file_name"] == x["file_name"] else other).append((before, x))
    if other:
        a, b = other[0]
        example = f"{a['id']!r} of {a['file_name']} and {b['file_name']}"
        add("image_ids", len(other), len(entries), example)
    add("image_twice", len(twice), len(entries), twice and twice[0][1]["file_name"])

    categories = _categories(table["categories"], add)
    numbers = {i: n for n, i in enumerate(sorted(categories))}
    lacking = [a for a in annotations if not refers(a)]
    _add_incomplete("annotation", lacking, len(annotations), ("image_id", "category_id"), add)
    complete = annotations
    if lacking:
        complete = [a for a in annotations if refers(a)]
    order = {i: n for n, i in enumerate(images)}
    listed = [a for a in complete if a["image_id"] in order]
    if strangers := len(complete) - len(listed):
        first = next(a for a in complete if a["image_id"] not in order)
        example = f"image_id {first['image_id']!r}"
        if images:
            example += f" (the images have ids such as {next(iter(images))!r})"
        add("strangers" if listed else "all_strangers", strangers, len(complete), example)
    # Of categories that are there but refused, one message is enough.
    there = [c.get("id") for c in table["categories"] if isinstance(c, dict)]
    unknown = [a for a in listed if a["category_id"] not in numbers]
    unknown = [a for a in unknown if a["category_id"] not in there]
    add(
        "unknown_category", len(unknown), len(listed),
        unknown and f"category_id {unknown[0]['category_id']!r}; the categories are "
        f"{list(categories)[:20]}",
    )  # fmt: skip
    known = [a for a in listed if a["category_id"] in numbers]
    ignored = [a for a in listed if a.get("ignore", 0)]
    add("ignore", len(ignored), len(listed), ignored and f"image_id {ignored[0]['image_id']!r}")
    breaks = _repairable(table, [a for a in annotations if isinstance(a, dict)], add)

    sizeless = [x for x in images.values() if not (size_of(x, "width") and size_of(x, "height"))]
    add("no_size", len(sizeless), len(images), sizeless and sizeless[0]["file_name"])
    files = [os.path.join(image_root, x["file_name"]) for x in images.values()]
    sizes = [(size_of(x, "width"), size_of(x, "height")) for x in images.values()]
    if sizeless:
        sizes = [s if all(s) else read_header(f)[:2] for s, f in zip(sizes, files, strict=True)]
    boxes, good = _boxes(known, defects, [files[order[a["image_id"]]] for a in known])
    known = [a for a, g in zip(known, good, strict=True) if g] if not good.all() else known
    return Contents(
        files,
        np.array(sizes, dtype=int).reshape(-1, 2),
        boxes,
        np.array([order[a["image_id"]] for a in known], dtype=int),
        np.array([numbers[a["category_id"]] for a in known], dtype=int),
        np.array([is_crowd(a) for a in known], dtype=bool),
        [str(categories[i]) for i in numbers],
        defects,
        breaks or bool(sizeless),
    )


def load_table(path: str) -> dict:
    """Parse a COCO file; see `read_coco` for the errors."""
    local = PathManager.get_local_path(str(path))
    try:
        with open(local, "rb") as f:
            table = json.loads(f.read())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: expected a JSON file in COCO's format, found: {error}. Make it again."
        ) from error
    for key in ("images", "categories"):
        if not isinstance(table, dict) or not isinstance(table.get(key), list):
            found = ", ".join(table) if isinstance(table, dict) else type(table).__name__
            raise ValueError(
                f"{path}: expected a file in COCO's format with a list of {key}, found {found}."
            )
    return table


def _add_incomplete(
    what: str, bad: Sequence[Any], total: int, keys: Sequence[str], add: Callable[..., None]
) -> None:
    """Count entries that lack a value of some keys apart from those with one of another type."""

    lacking = [x for x in bad if lacks_value(x, keys)]
    other = [x for x in bad if not lacks_value(x, keys)]
    add(f"{what}_entries", len(lacking), total, lacking and lacking[0])
    add(f"{what}_types", len(other), total, other and {k: other[0][k] for k in keys})


def _categories(rows: Sequence[Mapping], add: Any) -> dict[Any, str]:
    """Category id -> name."""
    bad = [c for c in rows if not is_category(c)]
    _add_incomplete("category", bad, len(rows), ("id", "name"), add)
    rows = [c for c in rows if is_category(c)]
    kinds = Counter(type(c["id"]) for c in rows)
    usual = kinds.most_common(1)[0][0] if kinds else int
    categories: dict[Any, str] = {}
    wrong = []
    for c in rows:
        if type(c["id"]) is not usual or c["id"] in categories:
            wrong.append(c)
        else:
            categories[c["id"]] = c["name"]
    add(
        "category_ids", len(wrong), len(rows),
        wrong and f"{wrong[0]['id']!r} of {wrong[0]['name']!r}",
    )  # fmt: skip
    return categories


def _repairable(table: Mapping, annotations: Sequence[Mapping], add: Any) -> bool:
    """Count what `mend_coco` repairs in annotations.

    Returns:
        whether Detectron2 could not load the file as it is.
    """
    ids: list[Any] = [a.get("id") for a in annotations]
    try:
        counts = Counter(ids)
    except TypeError:
        counts = Counter(map(repr, ids))
        ids = list(map(repr, ids))
    whole = all(type(i) is int for i in counts)
    if len(counts) < len(ids) or not whole or min(counts, default=1) < 1:
        wrong = [i for i in ids if type(i) is not int or i < 1 or counts[i] > 1]
        add("annotation_ids", len(wrong), len(ids), f"id {wrong[0]!r}")
    total = len(annotations)
    for kind, key in (("no_area", "area"), ("no_iscrowd", "iscrowd")):
        without = [a for a in annotations if not is_usable(key, a.get(key))]
        add(kind, len(without), total, without and f"id {without[0].get('id')!r}")
    if annotations and "info" not in table and info_is_needed():
        add("no_info", 1, 1, "this one")
    # Detectron2 compares iscrowd with 0: it would leave out boxes with null or "0" as crowds.
    as_crowds = any("iscrowd" in a and not is_usable("iscrowd", a["iscrowd"]) for a in annotations)
    return as_crowds or len(counts) < len(ids) or None in counts


@functools.cache
def info_is_needed() -> bool:
    """Whether this version of pycocotools evaluates no file without `info`."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}
    detection = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        try:
            coco.loadRes([detection])
        except KeyError:
            return True
    return False


def read_records(records: Sequence[Mapping[str, Any]], classes: Sequence[str] | None) -> Contents:
    """Read dicts of Detectron2's standard format.

    Args:
        records: one dict for each image. Its keys may all be missing.
        classes: the names, where the set has any.
    """
    defects: list[Defect] = []
    files = [str(x.get("file_name") or "") for x in records]
    sizes = [(size_of(x, "width"), size_of(x, "height")) for x in records]
    annotations: list[Mapping] = []
    owners: list[int] = []
    for i, x in enumerate(records):
        rows = x.get("annotations") or ()
        annotations.extend(rows)
        owners.extend([i] * len(rows))
    rotated = [a.get("bbox_mode") == BoxMode.XYWHA_ABS for a in annotations]
    if any(rotated):
        first = rotated.index(True)
        example = f"{annotations[first].get('bbox')!r} in {files[owners[first]]}"
        defects.append(Defect("rotated", sum(rotated), len(rotated), example))
        annotations = [a for a, r in zip(annotations, rotated, strict=True) if not r]
        owners = [i for i, r in zip(owners, rotated, strict=True) if not r]
    boxes, good = _boxes(annotations, defects, [files[i] for i in owners])
    if not good.all():
        annotations = [a for a, g in zip(annotations, good, strict=True) if g]
        owners = [i for i, g in zip(owners, good, strict=True) if g]
    modes = np.array([int(a.get("bbox_mode", BoxMode.XYWH_ABS)) for a in annotations], dtype=int)
    relative = np.isin(modes, [BoxMode.XYXY_REL, BoxMode.XYWH_REL])
    corners = modes == BoxMode.XYXY_ABS
    boxes[corners, 2:] -= boxes[corners, :2]
    contents = Contents(
        files,
        np.array(sizes, dtype=int).reshape(-1, 2),
        boxes,
        np.array(owners, dtype=int),
        np.array([_number(a.get("category_id")) for a in annotations], dtype=int),
        # As Detectron2 compares it: None and text are crowds, too.
        np.array([a.get("iscrowd", 0) != 0 for a in annotations], dtype=bool),
        None if classes is None else list(map(str, classes)),
        defects,
    )
    if relative.any():
        first = int(np.flatnonzero(relative)[0])
        example = contents.name_box(first)
        defects.append(Defect("mode", int(relative.sum()), len(boxes), example))
    if classes is not None:
        wrong = (contents.labels < 0) | (contents.labels >= len(classes))
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            example = f"class {contents.labels[i]} of {len(classes)} in {files[owners[i]]}"
            defects.append(Defect("class_number", int(wrong.sum()), len(boxes), example))
    contents.searched = _check_annotated_classes(records, files, classes, defects)
    ids = [x["image_id"] for x in records if "image_id" in x]
    repeated = [i for i, n in Counter(map(_hashable, ids)).items() if n > 1]
    if repeated:
        defects.append(Defect("tested_twice", len(repeated), len(records), repr(repeated[0])))
    return contents


def _check_annotated_classes(
    records: Sequence[Mapping[str, Any]],
    files: Sequence[str],
    classes: Sequence[str] | None,
    defects: list[Defect],
) -> int:
    """Count images whose "annotated_classes" are no class numbers.

    Returns:
        the largest class number, + 1.
    """
    most = math.inf if classes is None else len(classes)
    largest, wrong = -1, []
    for x, file in zip(records, files, strict=True):
        searched = x.get("annotated_classes")
        if searched is None:
            continue
        iterable = isinstance(searched, Iterable) and not isinstance(searched, str)
        if iterable and all(_is_class(c) and c < most for c in searched):
            largest = max(largest, *searched, -1)
        else:
            wrong.append(f"{searched!r} in {file}")
    if wrong:
        defects.append(Defect("annotated_classes", len(wrong), len(records), wrong[0]))
    return int(largest) + 1


def _is_class(value: Any) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return bool(whole and value >= 0)


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return -1


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else repr(value)
