"""What one entry of a COCO file says: an image, a category or an annotation.

Files have entries of all kinds. So an entry can be anything that JSON can hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "is_category",
    "is_crowd",
    "is_image",
    "is_usable",
    "lacks_value",
    "refers",
    "size_of",
]


def lacks_value(entry: Any, keys: Sequence[str]) -> bool:
    """Whether an entry has no value, or an empty one, for one of some keys."""
    return not isinstance(entry, dict) or any(entry.get(k) in (None, "") for k in keys)


def is_image(entry: Any) -> bool:
    """Whether an entry has what an image needs. Lists and objects cannot be ids."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), (int, str, float)):
        return False
    return isinstance(entry.get("file_name"), str) and entry["file_name"] != ""


def is_category(entry: Any) -> bool:
    """Whether an entry has what a category needs."""
    return isinstance(entry, dict) and isinstance(entry.get("id"), (int, str)) and "name" in entry


def refers(annotation: Any) -> bool:
    """Whether an annotation names an image and a category."""
    if not isinstance(annotation, dict):
        return False
    ids = annotation.get("image_id"), annotation.get("category_id")
    return isinstance(ids[0], (int, str, float)) and isinstance(ids[1], (int, str, float))


def size_of(image: Mapping, key: str) -> int:
    """Width or height of an image in pixels; 0 if it has none, or no finite number > 0."""
    value = image.get(key)
    return int(value) if isinstance(value, (int, float)) and 0 < value < math.inf else 0


def is_usable(key: str, value: Any) -> bool:
    """Whether `area` or `iscrowd` is a number that can be used.

    pycocotools ignores boxes whose area is negative or infinite, and takes one that is NaN for
    small, medium and large.
    """
    if not isinstance(value, (int, float)):
        return False
    return key != "area" or (math.isfinite(value) and value >= 0)


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is a crowd, also where `iscrowd` is text, as some exports have it."""
    value = annotation.get("iscrowd", 0)
    return value.strip().lower() in ("1", "true") if isinstance(value, str) else bool(value)
