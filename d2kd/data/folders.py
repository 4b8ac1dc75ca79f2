"""Data sets that are registered by where they lie.

    <root>/<name>/annotations/<split>.json    COCO format, where there are labels
    <root>/<name>/<split>/...                 images

is the data set `<name>_<split>`, or `<split>` where that begins with the name. Without the JSON its
images have no labels.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

__all__ = ["register_folder", "register_folders"]


def register_folder(folder: str | Path, name: str | None = None) -> list[str]:
    """Register the splits of one data set. Nothing is read before a split is used.

    Names that are taken already are left to whoever has them.

    Args:
        folder: see the module.
        name: default: the folder's.

    Returns:
        the names of its splits, registered now or before.

    Raises:
        ValueError: the folder has no split.
    """
    folder = Path(folder)
    name = name or folder.name
    splits = {p.stem for p in folder.glob("annotations/*.json") if (folder / p.stem).is_dir()}
    labelled = set(splits)
    if folder.is_dir():
        splits |= {p.name for p in folder.iterdir() if p.is_dir() and p.name != "annotations"}
    if not splits:
        raise ValueError(
            f"{folder}: expected images in {folder}/<split>/ and, where there are labels, "
            f"{folder}/annotations/<split>.json, found no split. See datasets/README.md."
        )
    found = []
    for split in sorted(splits):
        full = split if split.startswith(f"{name}_") else f"{name}_{split}"
        found.append(full)
        if full in DatasetCatalog:
            continue
        images = folder / split
        if split in labelled:
            table = folder / "annotations" / f"{split}.json"
            DatasetCatalog.register(full, functools.partial(_load, str(table), str(images), full))
            MetadataCatalog.get(full).set(
                json_file=str(table), image_root=str(images), evaluator_type="coco"
            )
        else:
            DatasetCatalog.register(full, functools.partial(_list, images))
            MetadataCatalog.get(full).set(image_root=str(images))
    return found


def register_folders(root: str | Path | None = None) -> list[str]:
    """Register every data set below a root that has labels in the layout above.

    Args:
        root: default: $DETECTRON2_DATASETS, or ``datasets``.

    Returns:
        their names.
    """
    root = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    found = []
    for tables in sorted(root.glob("*/annotations")):
        folder = tables.parent
        if any((folder / p.stem).is_dir() for p in tables.glob("*.json")):
            found += register_folder(folder)
    return found


def _load(table: str, images: str, name: str) -> list[dict]:
    return load_coco_json(table, images, name)


def _list(folder: Path) -> list[dict]:
    """Images of a split without labels, which were not searched for anything."""
    from .manifest import Manifest

    images = []
    for image in Manifest.from_folder(folder).images:
        size = {"height": image.height, "width": image.width} if image.height else {}
        images.append({"file_name": image.file_name, "image_id": image.image_id, **size})
    return [{**image, "annotations": [], "annotated_classes": []} for image in images]
