"""Small COCO sets, on disk and registered, with mistakes that tests put into them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2kd.data.folders import register_folder

SIZE = 64
CLASSES = ("red", "green", "blue")


def table(images: int = 6, boxes: int = 2, classes: Sequence[str] = CLASSES, seed: int = 0) -> dict:
    """A valid COCO table of images of 64 x 64 pixels, whose boxes lie inside."""
    random = np.random.RandomState(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(boxes):
            x, y = random.randint(0, 40, 2).tolist()
            w, h = random.randint(8, 20, 2).tolist()
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image, bbox=[x, y, w, h], area=w * h,
                     category_id=len(annotations) % len(classes) + 1, iscrowd=0)
            )  # fmt: skip
    return dict(
        info={},
        images=[
            dict(id=i, file_name=f"{i}.png", width=SIZE, height=SIZE) for i in range(1, images + 1)
        ],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)],
    )


def draw(path: Path, seed: int = 0) -> None:
    pixels = np.random.RandomState(seed).randint(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write(
    root: Path,
    name: str,
    split: str,
    change: Callable[[dict], object] = lambda table: None,
    save: Callable[[Path], object] = draw,
    **fields,
) -> Path:
    """Write a split in the layout of `d2kd.data.folders`; `change` edits its table in place."""
    folder = root / name / split
    folder.mkdir(parents=True)
    (root / name / "annotations").mkdir(exist_ok=True)
    content = table(**fields)
    for image in content["images"]:
        save(folder / image["file_name"])
    change(content)
    path = root / name / "annotations" / f"{split}.json"
    path.write_text(json.dumps(content))
    return path


@contextmanager
def registered(*folders: Path) -> Iterator[None]:
    """Register folders, and remove their splits at the end."""
    names = [name for folder in folders for name in register_folder(folder)]
    try:
        yield
    finally:
        remove(*names)


def remove(*names: str) -> None:
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def every(edit: Callable[[dict], object], step: int = 1) -> Callable[[dict], None]:
    """A change of every annotation, or of every `step`th."""

    def change(content: dict) -> None:
        for annotation in content["annotations"][::step]:
            edit(annotation)

    return change


def box(function: Callable, step: int = 1) -> Callable[[dict], None]:
    """A change of every box, or of every `step`th, by a function of x, y, width and height."""
    return every(lambda a: a.update(bbox=list(function(*a["bbox"]))), step)
