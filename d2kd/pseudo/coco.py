"""Labels as a COCO file that Detectron2 and pycocotools read.

Beside it lies ``provenance.json``: what the labels were made from, how many there are, and sha256
digests by which `d2kd.pseudo.provenance.verify` finds any later change.

Shapes: M boxes of one image, T teachers, K classes of the student.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.manifest import Image
from ..files import sha256_of_file
from .provenance import Counts, digest, dump, environment, verify
from .records import Labels

__all__ = ["EXTRA_KEYS", "is_kept", "read", "verify", "write_labels"]

SCHEMA = 1  # raise it when the meaning of a field changes
MIN_SIDE = 1.0  # in pixels; a smaller box teaches nothing, and some loaders refuse it
EXTRA_KEYS = ["pseudo_ignore", "score", "weight", "votes", "teachers", "source"]
"""What `detectron2.data.datasets.load_coco_json` loads only when told to."""


def is_kept(labels: Labels) -> bool:
    """Whether an image is worth training on: it has boxes, or surely none.

    Where all that was found lies between the low and the high bar, nobody knows what is there.
    """
    return not len(labels.boxes) or bool((~labels.ignore).any())


def write_labels(
    path: str | Path,
    images: Sequence[Image],
    labels: Mapping[int, Labels],
    classes: Sequence[str],
    provenance: Mapping[str, Any],
    *,
    annotated: Mapping[int, np.ndarray] | None = None,
    rejected: Iterable[tuple[str, str]] = (),
    parents: Iterable[str | Path] = (),
    image_root: str | Path | None = None,
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write labels as COCO JSON, and ``provenance.json`` beside it. Both appear whole.

    The same arguments give the same bytes of the COCO file. `labels` may compute them when asked:
    one image's are held at a time. Category ids are 1 to K in the order of `classes`. A region to
    ignore has ``iscrowd`` and ``pseudo_ignore`` 1. Boxes are cut at the image's border; one with a
    side below `MIN_SIDE` is left out. An image in which nothing was found is written without
    annotations; one in which no box but regions to ignore were found is left out (see `is_kept`).

    Args:
        images: what was to be labelled.
        labels: image id -> labels, in pixels of the image file.
        classes: the student's, K names.
        provenance: what the labels depend on, as JSON: "teachers" (name -> facts such as the
            sha256 of its checkpoint, in the order of `Labels.teachers`), "settings", "manifest".
            Its digest is in the COCO file: put no times in it.
        annotated: image id -> (K,) bool, the classes that were looked for; default: all. Where
            they are not all, the image has ``annotated_classes``, a list of category ids.
        rejected: file name and reason of images that could not be read. They are left out.
        parents: files that the labels were made from, whose digests are recorded.
        image_root: folder that file names are relative to; default: the one that holds all images.
            A file outside of it keeps its whole path.
        run: facts that the labels do not depend on, such as the time it took.

    Returns:
        what ``provenance.json`` says.

    Raises:
        ValueError: ids that are not unique; labels that are missing, broken, or of classes that
            the image is not annotated for, with the image.
    """
    path = Path(os.path.abspath(path))
    if missing := {"teachers", "settings", "manifest"} - set(provenance):
        raise ValueError(f"provenance: expected {', '.join(sorted(missing))}, found none")
    images = sorted(images, key=lambda image: image.image_id)
    ids = {image.image_id for image in images}
    strange = len(set(labels) - ids)
    if len(ids) < len(images) or len(set(classes)) < len(classes) or strange:
        raise ValueError(
            f"expected unique image ids, unique class names and labels of these images, found "
            f"{len(images)} images with {len(ids)} ids, {len(classes)} classes with "
            f"{len(set(classes))} names, and labels of {strange} other images"
        )
    rejected = sorted(dict(rejected).items())
    refused = {name for name, _ in rejected}
    if image_root is None and images:
        folders = {os.path.dirname(os.path.abspath(image.file_name)) for image in images}
        image_root = os.path.commonpath(folders)
    root = os.path.join(os.path.abspath(image_root or "."), "")
    info = {"schema": SCHEMA, "provenance": digest(provenance), "image_root": root}
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    teachers, everything = list(provenance["teachers"]), np.ones(len(classes), dtype=bool)
    counts, unsure, dropped, written = Counts(classes), 0, 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".labels-", dir=path.parent) as work:
        new, rest, beside = (Path(work, name) for name in ("labels", "annotations", "provenance"))
        with open(new, "w") as head, open(rest, "w") as tail:
            head.write(f'{{"info":{dump(info)},\n"categories":{dump(categories)},\n"images":[')
            for image in images:
                if image.file_name in refused:
                    continue
                if image.image_id not in labels:
                    raise ValueError(
                        f"image {image.image_id} ({image.file_name}): expected labels, or its name "
                        f"among the rejected, found neither. Label it first."
                    )
                found = labels[image.image_id]
                owned = (annotated or {}).get(image.image_id, everything)
                rows = _annotations(image, found, teachers, owned)
                dropped += len(found.boxes) - len(rows)
                if len(found.boxes) and all(row["iscrowd"] for row in rows):
                    unsure += 1
                    continue
                head.write(",\n" if counts.per_image else "\n")
                head.write(dump(_image(image, root, owned)))
                for row in rows:
                    tail.write(",\n" if written else "\n")
                    written += 1
                    tail.write(dump({"id": written, **row}))
                counts.add(rows)
            head.write('],\n"annotations":[')
        with open(new, "ab") as head, open(rest, "rb") as tail:
            shutil.copyfileobj(tail, head)
            head.write(b"]}\n")
        content = {
            "schema": SCHEMA,
            "labels": {"file": path.name, "sha256": sha256_of_file(new)},
            "made_from": dict(provenance),
            "parents": {os.path.relpath(p, path.parent): sha256_of_file(p) for p in parents},
            "counts": {
                **counts.figures(),
                "asked_images": len(ids) + len(refused - {i.file_name for i in images}),
                "rejected_images": len(rejected),
                "unsure_images": unsure,
                "dropped_boxes": dropped,
            },
            "rejected": [list(pair) for pair in rejected],
            "run": {**environment(), **(run or {})},
        }
        content["sha256"] = digest(content)
        beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        os.replace(new, path)
        os.replace(beside, path.with_name("provenance.json"))
    return content


def _image(image: Image, root: str, owned: np.ndarray) -> dict[str, Any]:
    if min(image.height, image.width) < 1:
        raise ValueError(
            f"image {image.image_id} ({image.file_name}): expected a height and a width of 1 pixel "
            f"or more, found {image.height} and {image.width}"
        )
    file = os.path.abspath(image.file_name)
    row = {"id": int(image.image_id), "file_name": file.removeprefix(root)}
    row |= {"height": int(image.height), "width": int(image.width)}
    if not owned.all():
        row["annotated_classes"] = (np.flatnonzero(owned) + 1).tolist()
    return row


def _annotations(
    image: Image, labels: Labels, teachers: Sequence[str], owned: np.ndarray
) -> list[dict[str, Any]]:
    """Labels of one image in COCO's format, without ids: boxes before regions to ignore, each from
    the highest score down. Pixels are rounded to 1/1000: digits beyond differ between machines."""
    where, count = f"labels of image {image.image_id} ({image.file_name})", len(labels.boxes)
    tails = {"boxes": (4,), "teachers": (len(teachers),)}
    for name in ("boxes", "scores", "classes", "votes", "teachers", "ignore", "weights"):
        expected, found = (count, *tails.get(name, ())), getattr(labels, name).shape
        if found != expected:
            raise ValueError(f"{where}: expected {name} of shape {expected}, found {found}")
    if not np.isfinite(labels.boxes).all():
        raise ValueError(f"{where}: expected finite boxes, found {labels.boxes.tolist()}")
    for name in ("scores", "weights"):
        value = getattr(labels, name)
        if not ((value >= 0) & (value <= 1)).all():  # nor for NaN
            raise ValueError(f"{where}: expected {name} in [0, 1], found {value.tolist()}")
    inside = (labels.classes >= 0) & (labels.classes < len(owned))
    if not (inside.all() and owned[labels.classes].all()):
        raise ValueError(
            f"{where}: expected classes that it is annotated for, {np.flatnonzero(owned).tolist()},"
            f" found {sorted(set(labels.classes.tolist()))}"
        )
    corners = labels.boxes.astype(float).clip(0, [image.width, image.height] * 2)
    corners = corners.round(3) + 0.0  # no -0.0
    sides = (corners[:, 2:] - corners[:, :2]).round(3)
    boxes, areas = np.concatenate([corners[:, :2], sides], 1), sides.prod(1).round(3)
    scores, weights = (x.astype(float).round(6) for x in (labels.scores, labels.weights))
    order = np.lexsort((*boxes.T[::-1], labels.classes, -scores, labels.ignore))
    return [
        {
            "image_id": int(image.image_id),
            "category_id": int(labels.classes[i]) + 1,
            "bbox": boxes[i].tolist(),
            "area": float(areas[i]),
            "iscrowd": int(labels.ignore[i]),
            "pseudo_ignore": int(labels.ignore[i]),
            "score": float(scores[i]),
            "weight": float(weights[i]),
            "votes": int(labels.votes[i]),
            "teachers": [t for t, did in zip(teachers, labels.teachers[i], strict=True) if did],
            "source": "pseudo",
        }
        for i in order[(sides[order] >= MIN_SIDE).all(1)].tolist()
    ]


def read(
    path: str | Path, image_root: str | Path | None = None, *, check: bool = True
) -> list[dict[str, Any]]:
    """Labels as dicts of Detectron2's `DatasetCatalog`.

    Annotations carry `EXTRA_KEYS` too. An image that was not searched for all classes has
    ``annotated_classes``, a list of those it was searched for, as contiguous indices like
    ``category_id``.

    Args:
        image_root: where the images lie now; default: where they lay.
        check: refuse a file that has changed since it was written.

    Raises:
        FileNotFoundError: there are no labels.
        ValueError: the file has changed, or its provenance is missing.
    """
    from detectron2.data.datasets import load_coco_json

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected labels, found no such file. Make them with d2kd label."
        )
    if check:
        beside = path.with_name("provenance.json")
        said = json.loads(beside.read_text())["labels"]["sha256"] if beside.exists() else None
        if said != sha256_of_file(path):
            raise ValueError(
                f"{path}: expected the file that {beside.name} beside it describes, found another "
                f"(sha256 differs) or no {beside.name}. Make the labels again, or pass check=False."
            )
    content = json.loads(path.read_bytes())
    searched = {i["id"]: i.get("annotated_classes") for i in content["images"]}
    root = str(image_root or content["info"]["image_root"])
    del content
    records = load_coco_json(str(path), root, extra_annotation_keys=EXTRA_KEYS)
    for record in records:
        if (classes := searched[record["image_id"]]) is not None:
            record["annotated_classes"] = [i - 1 for i in classes]
        for annotation in record["annotations"]:
            annotation["category_id"] -= 1
    return records
