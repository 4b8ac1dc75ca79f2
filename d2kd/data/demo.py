"""The built-in demo set: handwritten digits on photographs, made locally in about a minute.

Nothing is downloaded. The digits come with scikit-learn, the photographs with scikit-image. The set
is the same on every machine (see `demo_images`), and all of its files are lossless.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_json
from .demo_images import CLASSES, RECIPE, SIDE, SPLITS, draw, load_material

__all__ = ["CLASSES", "SPLITS", "load_split", "load_truth", "make_demo", "register_demo"]

logger = logging.getLogger(__name__)


def _write_split(folder: Path, split: str, size: int) -> str:
    """Write images and JSON of a split. Returns the first 16 digits of its sha256."""
    from d2kd.progress import track

    def write(index: int) -> tuple[bytes, list[dict[str, Any]]]:
        image, annotations = draw(split, index)
        Image.fromarray(image).save(folder / split / f"{index:06d}.png", compress_level=1)
        return hashlib.sha256(image.tobytes()).digest(), annotations

    (folder / split).mkdir()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy and zlib free the GIL
        drawn = list(track(pool.map(write, range(size)), size, split))
    labels = [{"image_id": i, **label} for i in range(size) for label in drawn[i][1]]
    coco = {
        "images": [{"id": i, "file_name": f"{i:06d}.png", "width": SIDE, "height": SIDE}
                   for i in range(size)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }  # fmt: skip
    if SPLITS[split].labeled:
        coco["annotations"] = [{"id": i, **label} for i, label in enumerate(labels, start=1)]
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    everything = [pixels for pixels, _ in drawn] + [json.dumps(labels, sort_keys=True).encode()]
    return hashlib.sha256(b"".join(everything)).hexdigest()[:16]


def _folder(root: str | Path | None) -> Path:
    root = root or os.environ.get("DETECTRON2_DATASETS", "datasets")
    return Path(os.path.abspath(os.path.expanduser(root)), "demo")


def make_demo(
    root: str | Path | None = None,
    sizes: Mapping[str, int] | None = None,
    *,
    splits: Iterable[str] = tuple(SPLITS),
) -> Path:
    """Make the splits of the demo set that are not in ``root``/demo yet, and return that folder.

    A split counts as made when all of its files are written. If two processes make the set at the
    same time, the second one waits and uses the result of the first.

    Args:
        root: the data folder; default: $DETECTRON2_DATASETS, or ``datasets``.
        sizes: split -> number of images, for smaller splits. A split of another size is made again.
        splits: the splits to make if `sizes` is None. An existing split may have any size.

    Raises:
        FileExistsError: the folder exists and is not a demo set.
        ImportError: scikit-learn or scikit-image is missing.
    """
    from iopath.common.file_io import file_lock

    folder = _folder(root)
    wanted = dict.fromkeys(splits) if sizes is None else dict(sizes)
    if not _missing(folder, wanted):
        return folder
    load_material()  # finds a missing package before anything is written
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(folder.with_name(".demo"))):  # .demo.lock
        for split in _missing(folder, wanted):
            _make_split(folder, split, wanted[split] or SPLITS[split].size)
    return folder


def _missing(folder: Path, wanted: Mapping[str, int | None]) -> list[str]:
    """The splits that are not made, or have another size than the wanted one."""
    made = _read_made(folder)["sizes"]
    return [x for x, size in wanted.items() if x not in made or size not in (None, made[x])]


def _read_made(folder: Path) -> dict[str, Any]:
    """What made.json says of the splits that this recipe has made."""
    if (folder / "made.json").exists():
        made = json.loads((folder / "made.json").read_text())
        if made["recipe"] == RECIPE:
            return made
    elif folder.exists():
        raise FileExistsError(
            f"{folder}: expected a demo set of d2kd, found no made.json. Move the folder away."
        )
    return {"recipe": RECIPE, "sizes": {}, "sha256": {}}


def _make_split(folder: Path, split: str, size: int) -> None:
    """Make a split, and then add it to made.json."""
    made = _read_made(folder)
    for values in (made["sizes"], made["sha256"]):
        values.pop(split, None)  # from now on, it is not made
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    write_json(folder / "made.json", made)
    logger.info(f"Making {split} of the demo set in {folder}, once")
    shutil.rmtree(folder / split, ignore_errors=True)  # of another size, or half made
    digest, expected = _write_split(folder, split, size), SPLITS[split].sha256
    if size == SPLITS[split].size and digest != expected:
        logger.warning(f"{split}: expected the published sha256 {expected}, found {digest}")
    made["sizes"][split], made["sha256"][split] = size, digest
    write_json(folder / "made.json", made)


def load_split(root: str | Path | None, split: str) -> list[dict[str, Any]]:
    """Load a split, and make it if it is not there yet; see `make_demo`."""
    from detectron2.data.datasets import load_coco_json

    folder = make_demo(root, splits=[split])
    return load_coco_json(f"{folder}/annotations/{split}.json", f"{folder}/{split}", split)


def load_truth(root: str | Path | None, split: str) -> list[dict[str, Any]]:
    """Load a split with its true labels, even if the split has none.

    The labels are computed again from the seed. They show how good pseudo labels are.

    Args:
        root: see `make_demo`.
        split: name of the split.
    """
    from detectron2.structures import BoxMode

    images = sorted(load_split(root, split), key=lambda image: image["image_id"])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(lambda image: draw(split, image["image_id"])[1], images))
    for label in (label for labels in drawn for label in labels):
        label |= {"bbox_mode": BoxMode.XYWH_ABS, "category_id": label["category_id"] - 1}
    return [{**image, "annotations": x} for image, x in zip(images, drawn, strict=True)]


def register_demo(root: str | Path | None = None) -> None:
    """Register all splits with Detectron2. A split is made when it is first loaded.

    Splits without labels are also registered with their true labels, as `<split>_truth`.

    You may call this again; the root of the last call is used. Detectron2's COCOEvaluator reads the
    JSON file when it is built: build the test loader first, or call `make_demo`.

    Args:
        root: see `make_demo`.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    folder = _folder(root)
    truths = {f"{split}_truth" for split, spec in SPLITS.items() if not spec.labeled}
    for name in (*SPLITS, *truths):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)
    for name in truths:
        split = name.removesuffix("_truth")
        DatasetCatalog.register(name, partial(load_truth, folder.parent, split))
        MetadataCatalog.get(name).set(thing_classes=CLASSES)
    for split in SPLITS:
        DatasetCatalog.register(split, partial(load_split, folder.parent, split))
        MetadataCatalog.get(split).set(
            json_file=f"{folder}/annotations/{split}.json",
            image_root=f"{folder}/{split}",
            evaluator_type="coco",
            thing_classes=CLASSES,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASSES))},
        )
