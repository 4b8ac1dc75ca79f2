"""Register datasets by their place in the data folder.

The files

    <root>/<name>/annotations/<split>.json    labels in COCO's format, if there are any
    <root>/<name>/<split>/...                 images

become the dataset `<name>_<split>`, or `<split>` if the split begins with `<name>_`. For example,
datasets/clipart/train/ becomes `clipart_train`. A split without a JSON file has no labels.
Hidden files and folders, whose names begin with a dot, are left out: a conversion that was killed
may leave one.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .layout import dataset_name

__all__ = ["register_folder", "register_folders"]


def register_folder(folder: str | Path, name: str | None = None) -> list[str]:
    """Register the splits of one dataset. Nothing is read before a split is used.

    A name that is registered already is left as it is.

    Args:
        folder: <root>/<name>, see the module.
        name: name of the dataset; default: the name of the folder.

    Returns:
        the names of the splits, including those that were registered before.

    Raises:
        ValueError: the folder has no split.
    """
    folder = Path(folder)
    name = name or folder.name
    labeled = _labeled_splits(folder)
    splits = set(labeled)
    if folder.is_dir():
        inside = [p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p)]
        splits |= {p.name for p in inside if p.name != "annotations"}
    if not splits:
        raise ValueError(
            f"{folder}: expected images in {folder}/<split>/ and, where there are labels, "
            f"{folder}/annotations/<split>.json, found no split. See datasets/README.md."
        )
    names = []
    for split in sorted(splits):
        full = dataset_name(name, split)
        names.append(full)
        if full in DatasetCatalog:
            continue
        images = folder / split
        if split in labeled:
            table = folder / "annotations" / f"{split}.json"
            load = functools.partial(load_coco_json, str(table), str(images), full)
            DatasetCatalog.register(full, load)
            MetadataCatalog.get(full).set(
                json_file=str(table), image_root=str(images), evaluator_type="coco"
            )
        else:
            DatasetCatalog.register(full, functools.partial(_list, images))
            MetadataCatalog.get(full).set(image_root=str(images))
    return names


def register_folders(root: str | Path | None = None) -> list[str]:
    """Register all datasets in a data folder that have labels for at least one split.

    Args:
        root: the data folder; default: $DETECTRON2_DATASETS, or ``datasets``.

    Returns:
        the names of their splits.
    """
    root = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    names = []
    for tables in sorted(root.glob("*/annotations")):
        folder = tables.parent
        if not _is_hidden(folder) and _labeled_splits(folder):
            names += register_folder(folder)
    return names


def _labeled_splits(folder: Path) -> set[str]:
    tables = [p for p in folder.glob("annotations/*.json") if not _is_hidden(p)]
    return {p.stem for p in tables if (folder / p.stem).is_dir()}


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _list(folder: Path) -> list[dict]:
    """Images of a split without labels. Their `annotated_classes` is empty: for no class do we
    know where its objects are, so that such an image is not background."""
    from .manifest import Manifest

    images = []
    for image in Manifest.from_folder(folder).images:
        size = {"height": image.height, "width": image.width} if image.height else {}
        images.append({"file_name": image.file_name, "image_id": image.image_id, **size})
    return [{**image, "annotations": [], "annotated_classes": []} for image in images]
