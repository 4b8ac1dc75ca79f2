"""CrowdHuman: people in crowds, each labelled with a box of the full body.

S. Shao et al., "CrowdHuman: A Benchmark for Detecting Human in a Crowd", arXiv:1805.00123. Its
labels are .odgt files, which hold one image a line as JSON. They are converted to COCO's format
with the rules of PGD's release (ECCV 2022, ``crowd_code/create_crowd_anno.py``):

* ``fbox``, the full body, as it is: x, y, width, height in pixels, and it may leave the image;
* a box with width <= 0 or height <= 0 is left out;
* all boxes are of the category "person"; those to be ignored (not tagged "person", or with
  ``extra.ignore``) have ``iscrowd = 1``, which Detectron2's mapper leaves out of training.

Detectron2's mapper cuts boxes at the image's border in training, where the release leaves them.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

__all__ = ["People", "convert_crowdhuman", "read_odgt", "register_crowdhuman"]

logger = logging.getLogger(__name__)

EXIF_ORIENTATION = 274


class People(NamedTuple):
    """What one line of an .odgt file says. Its image is ``Images/<name>.jpg``."""

    name: str
    boxes: np.ndarray  # (G, 4) float64: x, y, width, height in pixels, as they are in the file
    ignored: np.ndarray  # (G,) bool: no person, or one that need not be found


def read_odgt(odgt_file: str | Path) -> list[People]:
    """All N images of an .odgt file, in its order. An image may have no boxes at all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not as expected; with its number.
    """
    people = []
    # Bytes: a str's splitlines knows line breaks that may stand inside of JSON strings.
    for number, line in enumerate(Path(odgt_file).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            image = json.loads(line)
            found = image["gtboxes"]
            boxes = np.array([box["fbox"] for box in found], dtype=float).reshape(len(found), 4)
            ignored = [
                box["tag"] != "person" or box.get("extra", {}).get("ignore", 0) != 0
                for box in found
            ]
            people.append(People(image["ID"], boxes, np.array(ignored, dtype=bool)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{odgt_file}, line {number}: expected a JSON object with ID and gtboxes, each "
                f"with tag and fbox (x, y, width, height), found {line[:60]!r} "
                f"({type(error).__name__}: {error}). Download the file again."
            ) from error
    return people


def _image_size(file: Path) -> tuple[int, int]:
    """Width and height as Detectron2 will read the image; only the file's header is read."""
    with Image.open(file) as image:
        turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # by a quarter
        return image.size[::-1] if turned else image.size


def _convert(odgt_file: Path, image_root: Path) -> Path:
    """Write ``odgt_file`` in COCO's format beside it, unless that is there and not older."""
    json_file = odgt_file.with_suffix(".json")
    if json_file.exists() and json_file.stat().st_mtime >= odgt_file.stat().st_mtime:
        return json_file
    from tqdm import tqdm

    people = read_odgt(odgt_file)
    files = [image_root / f"{image.name}.jpg" for image in people]
    logger.info(f"Converting {odgt_file}: reading the sizes of {len(files)} images, once")
    with ThreadPoolExecutor(8) as pool:  # waiting for the disk most of the time
        bar = dict(desc=odgt_file.stem, total=len(files), unit="image", leave=False)
        sizes = list(tqdm(pool.map(_image_size, files), **bar))
    images = [
        {"id": i, "file_name": file.name, "width": width, "height": height}
        for i, (file, (width, height)) in enumerate(zip(files, sizes, strict=True))
    ]
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(people):
        kept = (image.boxes[:, 2:] > 0).all(axis=1)
        for box, ignored in zip(
            image.boxes[kept].tolist(), image.ignored[kept].tolist(), strict=True
        ):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": 1, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": int(ignored)}
            )  # fmt: skip
    coco = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    # Whole or not there; of two processes that convert at once, both write the same.
    with tempfile.TemporaryDirectory(prefix=".annotation-", dir=json_file.parent) as work:
        new = Path(work, json_file.name)
        new.write_text(json.dumps(coco))
        new.replace(json_file)
    return json_file


def _folder(root: str | Path | None) -> Path:
    root = root or os.environ.get("DETECTRON2_DATASETS", "datasets")
    return Path(os.path.abspath(os.path.expanduser(root)), "crowdhuman")


def _odgt_file(folder: Path, split: str) -> Path:
    return folder / f"annotation_{split}.odgt"


def convert_crowdhuman(root: str | Path | None = None) -> list[Path]:
    """Convert the splits whose .odgt file is there; one that is converted already is skipped.

    Reads ``root``/crowdhuman/annotation_{train,val}.odgt and the headers of the images in
    ``root``/crowdhuman/Images. Writes annotation_{train,val}.json beside the .odgt files: image
    ids are line numbers from 0 (blank lines do not count), annotation ids count from 1.

    Args:
        root: the data folder; default: $DETECTRON2_DATASETS, or ``datasets``.
    Returns: the JSON files.

    Raises:
        FileNotFoundError: there is no .odgt file, or an image is missing.
        ValueError: see `read_odgt`.
    """
    folder = _folder(root)
    files = [_odgt_file(folder, split) for split in ("train", "val")]
    found = [file for file in files if file.exists()]
    if not found:
        raise FileNotFoundError(
            f"{folder}: expected annotation_train.odgt or annotation_val.odgt, found neither. "
            f"Download them and the images from https://www.crowdhuman.org, or set "
            f"DETECTRON2_DATASETS to the folder that crowdhuman/ lies in."
        )
    return [_convert(file, folder / "Images") for file in found]


def _load(folder: Path, split: str) -> list[dict[str, Any]]:
    from detectron2.data.datasets import load_coco_json

    json_file = _convert(_odgt_file(folder, split), folder / "Images")
    return load_coco_json(str(json_file), str(folder / "Images"), f"crowdhuman_{split}")


def register_crowdhuman(root: str | Path | None = None) -> None:
    """Register crowdhuman_train and crowdhuman_val with Detectron2.

    Nothing is read here: a split is converted when it is first loaded (see `convert_crowdhuman`).
    Calling it again is fine; with another root, the last call holds.

    Args:
        root: the data folder; default: $DETECTRON2_DATASETS, or ``datasets``.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    folder = _folder(root)
    for split in ("train", "val"):
        name, odgt_file = f"crowdhuman_{split}", _odgt_file(folder, split)
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)
        DatasetCatalog.register(name, partial(_load, folder, split))
        MetadataCatalog.get(name).set(
            json_file=str(odgt_file.with_suffix(".json")),
            odgt_file=str(odgt_file),
            image_root=str(folder / "Images"),
            evaluator_type="coco",
            thing_classes=["person"],
            thing_dataset_id_to_contiguous_id={1: 0},
        )


if __name__ == "__main__":
    print(*convert_crowdhuman(), sep="\n")
