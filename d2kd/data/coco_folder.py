"""Find and register the training and validation set of a folder with COCO files.

`folders.py` wants one layout, and registers without reading. This takes the usual layouts of
folders that other tools write, and reads the classes, so that a config can count them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .audit.contents import load_table
from .layout import dataset_name

__all__ = ["CocoFolder", "register_coco_folder"]

# Where the JSON of a split may be, relative to the folder, and where its images may be.
TABLES = (
    "{}.json",
    "annotations/{}.json",
    "annotations/instances_{}.json",
    "{}/_annotations.coco.json",
)
IMAGES = ("images", "{}", "images/{}", ".")
SPLITS = {"train": ("train",), "val": ("val", "valid")}


class CocoFolder(NamedTuple):
    """What `register_coco_folder` found.

    Attributes:
        train, val: names of the registered datasets.
        classes: names of the classes by the order of their ids, as Detectron2 numbers them.
        images: number of images to train on.
    """

    train: str
    val: str
    classes: tuple[str, ...]
    images: int


def register_coco_folder(folder: str | os.PathLike) -> CocoFolder:
    """Register `<folder>_train` and `<folder>_val`.

    The JSON of a split is the first that exists of `train.json`, `annotations/train.json`,
    `annotations/instances_train.json` and `train/_annotations.coco.json`; `val` may also be called
    `valid`. Its images are in `images/`, `train/`, `images/train/` or in the folder itself,
    whichever has the first image of the JSON.

    Args:
        folder: the folder, for example "datasets/farm".

    Returns:
        the names of the datasets and their classes. Calling it again registers nothing new.

    Raises:
        FileNotFoundError: there is no folder, no JSON of a split, or no first image.
        ValueError: a JSON is not in COCO's format or lists no images, or another dataset has the
            name of one of these.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        unset = "" if os.environ.get("D2KD_DATA") else " (the variable is not set)"
        raise FileNotFoundError(
            f"expected a folder with images, train.json and val.json at {os.fspath(folder)!r}, "
            f"found none. Set D2KD_DATA{unset} to your folder: export D2KD_DATA=path/to/folder"
        )
    names, tables = {}, {}
    for split, words in SPLITS.items():
        table, word = _find_table(root, words)
        tables[split] = load_table(str(table))
        images = _find_images(root, word, table, tables[split]["images"])
        names[split] = _register(dataset_name(root.name, split), table, images)
    classes = _classes(tables["train"])
    return CocoFolder(names["train"], names["val"], classes, len(tables["train"]["images"]))


def _find_table(root: Path, words: tuple[str, ...]) -> tuple[Path, str]:
    places = [(pattern.format(word), word) for pattern in TABLES for word in words]
    for place, word in places:
        if (root / place).is_file():
            return root / place, word
    usual = {
        pattern.format(word) for pattern in TABLES for group in SPLITS.values() for word in group
    }
    found = (
        str(path.relative_to(root)) for glob in ("*.json", "*/*.json") for path in root.glob(glob)
    )
    others = sorted(set(found) - usual)
    if others:
        fix = (
            f"{', '.join(others[:5])}. Rename the right one, or make a link in that folder, "
            f"for example: ln -s {others[0]} {words[0]}.json"
        )
    else:
        fix = "none of these files. `d2kd data` converts VOC and YOLO labels."
    raise FileNotFoundError(
        f"{root}: expected the {words[0]} labels in COCO's format in one of "
        f"{', '.join(place for place, _ in places)}, found {fix}"
    )


def _find_images(root: Path, word: str, table: Path, images: list[dict]) -> Path:
    if not images:
        raise ValueError(f"{table}: expected images, found an empty list.")
    name = str(images[0].get("file_name"))
    folders = [root / pattern.format(word) for pattern in IMAGES]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    raise FileNotFoundError(
        f"{table}: expected its first image, {name!r}, in one of "
        f"{', '.join(map(str, folders))}, found it in none of them. The file names in the JSON "
        f"must be relative to one of these folders."
    )


def _classes(table: dict) -> tuple[str, ...]:
    """Names in the order of the ids. `d2kd.audit` compares the sets."""
    rows = table["categories"]
    if not rows or not all(isinstance(row, dict) and {"id", "name"} <= set(row) for row in rows):
        raise ValueError(
            f"categories: expected a list of dicts with id and name, found {str(rows)[:80]}."
        )
    return tuple(str(row["name"]) for row in sorted(rows, key=lambda row: row["id"]))


def _register(name: str, table: Path, images: Path) -> str:
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, str(table), str(images))
        return name
    found = MetadataCatalog.get(name).get("json_file", "no COCO file")
    if found == "no COCO file" or Path(found).resolve() != table:
        raise ValueError(
            f"{name}: expected this name to be free or to belong to {table}, found that a dataset "
            f"of this name is registered with {found}. Rename the folder."
        )
    return name
