"""Write pseudo labels as a COCO file that Detectron2 and pycocotools read, and load them.

``provenance.json`` lies next to the COCO file. It says what the labels were made from and how many
there are, and has the sha256 digests with which `d2kd.pseudo.provenance.verify` finds any change.

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
from ..files import open_to_replace, remove_partial_files, sha256_of_file, write_file
from .fuse import Labels
from .provenance import SCHEMA, Counts, digest, dump, environment, verify

__all__ = ["EXTRA_KEYS", "is_kept", "load_pseudo_labels", "verify", "write_labels"]

MIN_SIDE = 1.0  # in pixels; a student learns nothing from a smaller box, and some loaders refuse it
EXTRA_KEYS = ["pseudo_ignore", "score", "weight", "votes", "teachers", "source"]
"""Keys of annotations that `detectron2.data.datasets.load_coco_json` loads only on request."""


def is_kept(labels: Labels) -> bool:
    """Whether to train on an image: it has boxes, or the teachers found nothing in it.

    If all boxes lie between the low and the high threshold, we do not know what is in the image.
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
    """Write labels as COCO JSON, and ``provenance.json`` next to it.

    Each of the two files is replaced in one step; until then the old one stays. The same arguments
    give the same bytes of the COCO file. `labels` may compute the labels of an image on access: the
    labels of only one image are in memory at a time.

    Category ids are 1 to K in the order of `classes`. A region to ignore has ``iscrowd`` and
    ``pseudo_ignore`` 1. Boxes are clipped to the image; a box with a side below `MIN_SIDE` is
    dropped. An image in which nothing was found is written without annotations. An image in which
    all boxes are regions to ignore is left out (see `is_kept`).

    Args:
        images: the images that were to be labeled.
        labels: image id -> labels, in pixels of the image file.
        classes: the student's K class names.
        provenance: everything that the labels depend on, as JSON: "teachers" (name -> facts such as
            the sha256 of its checkpoint, in the order of `Labels.teachers`), "settings" and
            "manifest". Its digest is in the COCO file, so do not put times into it.
        annotated: image id -> (K,) bool, the classes that teachers searched for; default: all. If
            they are not all, the image gets ``annotated_classes``, a list of category ids.
        rejected: file name and reason of images that could not be read. They are left out.
        parents: files that the labels were made from. Their digests are recorded.
        image_root: folder that file names are relative to; default: the common folder of all
            images. A file outside of this folder keeps its whole path.
        run: facts that the labels do not depend on, such as the running time.

    Returns:
        the content of ``provenance.json``.

    Raises:
        ValueError: ids are not unique, or an image has labels that are missing, malformed, or of
            classes that it is not annotated for. The message names the image.
    """
    path = Path(os.path.abspath(path))
    if missing := {"teachers", "settings", "manifest"} - set(provenance):
        raise ValueError(
            f"provenance: expected {', '.join(sorted(missing))}, found {', '.join(provenance)}"
        )
    images = sorted(images, key=lambda image: image.image_id)
    ids = {image.image_id for image in images}
    foreign = len(set(labels) - ids)
    if len(ids) < len(images) or len(set(classes)) < len(classes) or foreign:
        raise ValueError(
            f"expected unique image ids, unique class names and labels of these images, found "
            f"{len(images)} images with {len(ids)} ids, {len(classes)} classes with "
            f"{len(set(classes))} names, and labels of {foreign} other images"
        )
    unreadable = dict(sorted(dict(rejected).items()))
    if image_root is None and images:
        folders = {os.path.dirname(os.path.abspath(image.file_name)) for image in images}
        image_root = os.path.commonpath(folders)
    root = os.path.join(os.path.abspath(image_root or "."), "")
    info = {"schema": SCHEMA, "provenance": digest(provenance), "image_root": root}
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    teachers, all_classes = list(provenance["teachers"]), np.ones(len(classes), dtype=bool)
    counts, unsure, dropped, written = Counts(classes), 0, 0, 0
    provenance_file = path.with_name("provenance.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, provenance_file):
        remove_partial_files(file)
    # Annotations are streamed to a second file, which has no name, and appended at the end: they
    # follow the list of images, and millions of them do not fit into memory.
    with open_to_replace(path) as head, tempfile.TemporaryFile(dir=path.parent) as tail:
        start = f'{{"info":{dump(info)},\n"categories":{dump(categories)},\n"images":['
        head.write(start.encode())
        for image in images:
            if image.file_name in unreadable:
                continue
            if image.image_id not in labels:
                raise ValueError(
                    f"image {image.image_id} ({image.file_name}): expected labels, or its name "
                    f"among the rejected, found neither. Label it first."
                )
            image_labels = labels[image.image_id]
            owned = (annotated or {}).get(image.image_id, all_classes)
            rows = _annotations(image, image_labels, teachers, owned)
            dropped += len(image_labels.boxes) - len(rows)
            if len(image_labels.boxes) and all(row["iscrowd"] for row in rows):
                unsure += 1
                continue
            head.write(b",\n" if counts.per_image else b"\n")
            head.write(dump(_image(image, root, owned)).encode())
            for row in rows:
                tail.write(b",\n" if written else b"\n")
                written += 1
                tail.write(dump({"id": written, **row}).encode())
            counts.add(rows)
        head.write(b'],\n"annotations":[')
        tail.seek(0)
        shutil.copyfileobj(tail, head)
        head.write(b"]}\n")
        head.flush()
        content = {
            "schema": SCHEMA,
            "labels": {"file": path.name, "sha256": sha256_of_file(head.name)},
            "made_from": dict(provenance),
            "parents": {os.path.relpath(p, path.parent): sha256_of_file(p) for p in parents},
            "counts": {
                **counts.figures(),
                "asked_images": len(ids) + len(unreadable.keys() - {i.file_name for i in images}),
                "rejected_images": len(unreadable),
                "unsure_images": unsure,
                "dropped_boxes": dropped,
            },
            "rejected": [list(pair) for pair in unreadable.items()],
            "run": {**environment(), **(run or {})},
        }
        content["sha256"] = digest(content)
        provenance_text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_file(provenance_file, provenance_text)
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
    """The labels of one image in COCO's format, without ids. Boxes come before regions to ignore,
    each by descending score. Pixels are rounded to 1/1000, because further digits differ between
    machines."""
    context, count = f"labels of image {image.image_id} ({image.file_name})", len(labels.boxes)
    other_sizes = {"boxes": (4,), "teachers": (len(teachers),)}
    for name in ("boxes", "scores", "classes", "votes", "teachers", "ignore", "weights"):
        expected, shape = (count, *other_sizes.get(name, ())), getattr(labels, name).shape
        if shape != expected:
            raise ValueError(f"{context}: expected {name} of shape {expected}, found {shape}")
    if not np.isfinite(labels.boxes).all():
        raise ValueError(f"{context}: expected finite boxes, found {labels.boxes.tolist()}")
    for name in ("scores", "weights"):
        value = getattr(labels, name)
        if not ((value >= 0) & (value <= 1)).all():  # False for NaN
            raise ValueError(f"{context}: expected {name} in [0, 1], found {value.tolist()}")
    inside = (labels.classes >= 0) & (labels.classes < len(owned))
    if not (inside.all() and owned[labels.classes].all()):
        raise ValueError(
            f"{context}: expected classes that it is annotated for, "
            f"{np.flatnonzero(owned).tolist()}, found {sorted(set(labels.classes.tolist()))}"
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
            "teachers": [t for t, hit in zip(teachers, labels.teachers[i], strict=True) if hit],
            "source": "pseudo",
        }
        for i in order[(sides[order] >= MIN_SIDE).all(1)].tolist()
    ]


def load_pseudo_labels(
    path: str | Path, image_root: str | Path | None = None, *, check: bool = True
) -> list[dict[str, Any]]:
    """Load pseudo labels as dicts of Detectron2's `DatasetCatalog`.

    Annotations also have the keys in `EXTRA_KEYS`. If no teacher searched an image for some of the
    classes, the image has ``annotated_classes``: a list of the classes that were searched for, as
    contiguous indices like ``category_id``. `d2kd.data.PartialMapper` reads all of these.

    Args:
        path: ``labels.json``, as `write_labels` writes it.
        image_root: folder of the images, if they were moved since they were labeled.
        check: refuse a file that has changed since it was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has changed, its ``provenance.json`` is missing, or a newer version of
            d2kd wrote it.
    """
    from detectron2.data.datasets import load_coco_json

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected labels, found no such file. Make them with `d2kd label`."
        )
    if check:
        provenance = path.with_name("provenance.json")
        expected = None
        if provenance.exists():
            expected = json.loads(provenance.read_text())["labels"]["sha256"]
        if expected != sha256_of_file(path):
            raise ValueError(
                f"{path}: expected the file that {provenance.name} next to it describes, found "
                f"another (sha256 differs) or no {provenance.name}. Make the labels again, or pass "
                f"check=False."
            )
    content = json.loads(path.read_bytes())
    schema = content.get("info", {}).get("schema", SCHEMA)
    if schema > SCHEMA:  # schema 1 differs in provenance.json only
        raise ValueError(
            f"{path}: expected labels of format {SCHEMA} or older, found format {schema}. Update "
            f"d2kd, or make the labels again."
        )
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
