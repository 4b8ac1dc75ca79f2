"""CrowdHuman: people in crowds, each labeled with a box around the full body.

S. Shao et al., "CrowdHuman: A Benchmark for Detecting Human in a Crowd", arXiv:1805.00123. The
labels are .odgt files, in which each line describes one image as JSON. They are converted to COCO's
format by the rules of PGD's release (ECCV 2022, ``crowd_code/create_crowd_anno.py``):

* The box is ``fbox``, the full body, unchanged: x, y, width, height in pixels. It may extend beyond
  the image.
* A box with width <= 0 or height <= 0 is left out.
* All boxes have the category "person". Boxes to ignore (not tagged "person", or with
  ``extra.ignore``) get ``iscrowd = 1``. Detectron2's mapper drops them in training.

One difference to the release remains: in training, Detectron2's mapper clips boxes to the image.
"""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import write_file
from .images import image_size

__all__ = ["People", "convert_crowdhuman", "read_odgt", "register_crowdhuman"]

logger = logging.getLogger(__name__)


class People(NamedTuple):
    """The content of one line of an .odgt file.

    Attributes:
        name: the image is ``Images/<name>.jpg``.
        boxes: (G, 4) float64: x, y, width, height in pixels, as in the file.
        ignored: (G,) bool: not a person, or a person that need not be found.
    """

    name: str
    boxes: np.ndarray
    ignored: np.ndarray


def read_odgt(odgt_file: str | Path) -> list[People]:
    """Read all images of an .odgt file, in the order of the file. An image may have no boxes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed. The message has the line number.
    """
    people = []
    # Split bytes: str.splitlines would also split at characters that a JSON string may contain.
    for number, line in enumerate(Path(odgt_file).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            image = json.loads(line)
            people_boxes = image["gtboxes"]
            boxes = np.array([box["fbox"] for box in people_boxes], dtype=float)
            boxes = boxes.reshape(len(people_boxes), 4)
            ignored = [
                box["tag"] != "person" or box.get("extra", {}).get("ignore", 0) != 0
                for box in people_boxes
            ]
            people.append(People(image["ID"], boxes, np.array(ignored, dtype=bool)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{odgt_file}, line {number}: expected a JSON object with ID and gtboxes, each "
                f"with tag and fbox (x, y, width, height), found {line[:60]!r} "
                f"({type(error).__name__}: {error}). Download the file again."
            ) from error
    return people


def _convert(odgt_file: Path, image_root: Path) -> Path:
    """Write an .odgt file in COCO's format next to it, unless there is one that is not older."""
    json_file = odgt_file.with_suffix(".json")
    if json_file.exists() and json_file.stat().st_mtime >= odgt_file.stat().st_mtime:
        return json_file
    from tqdm import tqdm

    people = read_odgt(odgt_file)
    files = [image_root / f"{image.name}.jpg" for image in people]
    logger.info(f"Converting {odgt_file}: reading the sizes of {len(files)} images, once")
    with ThreadPoolExecutor(8) as pool:  # threads mostly wait for the disk
        sizes_read = pool.map(image_size, files)
        options: dict[str, Any] = dict(desc=odgt_file.stem, total=len(files), unit="image")
        sizes = list(tqdm(sizes_read, leave=False, **options))
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
    write_file(
        json_file, json.dumps(coco)
    )  # two processes may convert at once: both write the same
    return json_file


def _folder(root: str | Path | None) -> Path:
    root = root or os.environ.get("DETECTRON2_DATASETS", "datasets")
    return Path(os.path.abspath(os.path.expanduser(root)), "crowdhuman")


def _odgt_file(folder: Path, split: str) -> Path:
    return folder / f"annotation_{split}.odgt"


def convert_crowdhuman(root: str | Path | None = None) -> list[Path]:
    """Convert the labels of the splits whose .odgt files exist, unless they are converted already.

    Reads ``root``/crowdhuman/annotation_{train,val}.odgt and the headers of the images in
    ``root``/crowdhuman/Images. Writes annotation_{train,val}.json next to the .odgt files. Image
    ids are line numbers from 0 (without blank lines), annotation ids are 1, 2, ...

    Args:
        root: the data folder; default: $DETECTRON2_DATASETS, or ``datasets``.

    Returns:
        paths of the JSON files.

    Raises:
        FileNotFoundError: there is no .odgt file, or an image is missing.
        ValueError: see `read_odgt`.
    """
    folder = _folder(root)
    files = [_odgt_file(folder, split) for split in ("train", "val")]
    present = [file for file in files if file.exists()]
    if not present:
        raise FileNotFoundError(
            f"{folder}: expected annotation_train.odgt or annotation_val.odgt, found neither. "
            f"Download them and the images from https://www.crowdhuman.org, or set "
            f"DETECTRON2_DATASETS to the folder that contains crowdhuman/."
        )
    return [_convert(file, folder / "Images") for file in present]


def _load(folder: Path, split: str) -> list[dict[str, Any]]:
    from detectron2.data.datasets import load_coco_json

    json_file = _convert(_odgt_file(folder, split), folder / "Images")
    return load_coco_json(str(json_file), str(folder / "Images"), f"crowdhuman_{split}")


def register_crowdhuman(root: str | Path | None = None) -> None:
    """Register crowdhuman_train and crowdhuman_val with Detectron2.

    Nothing is read here: a split is converted when it is first loaded (see `convert_crowdhuman`).
    You may call this again; the root of the last call is used.

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
