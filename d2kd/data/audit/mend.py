"""Repair what Detectron2 or pycocotools cannot use in a COCO file, in a copy of it.

pycocotools takes an annotation with the id 0 for none at all, so that a detector which finds it
has a false positive. It needs `area`, `iscrowd` and, in some versions, `info`. Detectron2 does not
load a file with repeated annotation ids. None of this says anything about the images.
"""

from __future__ import annotations

import functools
import json
import math
import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ...files import write_file
from . import cache
from .contents import load_table
from .entries import is_crowd, is_usable, size_of
from .images import read_header

__all__ = ["mend_coco", "use_copy"]


def mend_coco(path: str, image_root: str, again: bool = False) -> str:
    """Write a repaired copy of a COCO file into the cache, unless there is one of this version.

    Annotations are numbered from 1. Missing `area` (of the box), `iscrowd` (0, or the number that
    a text says), `info`, and width and height (of the image file) are filled in.

    Args:
        path, image_root: of the file, and of its images.
        again: whether to write it in any case, because the images may have changed.

    Returns:
        path of the copy.
    """
    key = json.dumps([os.path.abspath(path), image_root, *cache.stamp(path)])
    copy = cache.place("mended", key)
    if copy.exists() and not again:
        return str(copy)
    table = load_table(path)
    table.setdefault("info", {})
    for i, annotation in enumerate(table.get("annotations") or (), start=1):
        annotation["id"] = i
        if not is_usable("iscrowd", annotation.get("iscrowd")):
            annotation["iscrowd"] = int(is_crowd(annotation))
        if not is_usable("area", annotation.get("area")):
            box = annotation.get("bbox") or (0, 0, 0, 0)
            area = float(box[2]) * float(box[3])
            annotation["area"] = area if math.isfinite(area) else 0.0
    for image in table["images"]:
        if not (size_of(image, "width") and size_of(image, "height")):
            header = read_header(os.path.join(image_root, image["file_name"]))
            image["width"], image["height"] = header.width, header.height
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_file(copy, json.dumps(table))
    return str(copy)


def use_copy(name: str, copy: str, image_root: str, reload: bool = True) -> None:
    """Use a repaired copy of the COCO file of a registered dataset, in this process.

    Args:
        name: of the dataset.
        copy: path of the copy.
        image_root: folder of the images.
        reload: whether the dataset is loaded from the copy, too, and not only evaluated with it.
    """
    if reload:
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(load_coco_json, copy, image_root, name))
    # Metadata refuses to change a value by assignment, so that two readers never see two values.
    vars(MetadataCatalog.get(name))["json_file"] = copy
