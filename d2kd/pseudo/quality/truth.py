"""Compare labels with ground truth: precision, recall, AP and kinds of errors.

Shapes: K classes of the student; D labels and G true boxes of one image. Boxes are x1y1x2y2 in
pixels of the image file.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from ...data.manifest import Image
from ...matching import Detections, GroundTruth, match, measure_overlaps

__all__ = [
    "AREAS",
    "EDGES",
    "IOU",
    "NEAR",
    "TrueBoxes",
    "TrueImage",
    "accuracy",
    "average_precision",
    "read_truth",
]

IOU = 0.5  # smallest IoU of a correct label with its object
NEAR = 0.1  # smallest IoU of a badly localized label with its object
EDGES = ("left", "top", "right", "bottom")
# COCO's ranges, in square pixels.
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


class TrueImage(NamedTuple):
    """The ground truth of one image.

    Attributes:
        file_name: path of the image, or the last part of it.
        boxes: (G, 4).
        classes: (G,), the student's class indices.
        crowds: (G,) bool.
        areas: (G,) in square pixels.
    """

    file_name: str
    boxes: np.ndarray
    classes: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray

    def select_classes(self, chosen: np.ndarray) -> TrueImage:
        """The boxes of the classes that are True in `chosen`, (K,) bool."""
        rows = chosen[self.classes]
        return TrueImage(
            self.file_name,
            self.boxes[rows],
            self.classes[rows],
            self.crowds[rows],
            self.areas[rows],
        )


class TrueBoxes(NamedTuple):
    """The ground truth of one source.

    Attributes:
        source: name of the dataset, or path of the COCO file.
        images: ground truth of each image.
        known: (K,) bool, the student's classes that the source labels.
    """

    source: str
    images: list[TrueImage]
    known: np.ndarray

    def select_images(self, images: Sequence[Image]) -> dict[int, TrueImage]:
        """Image id -> ground truth, for the images that have it.

        Images are identified by their files. Ids would not do: another dataset uses the same ids
        for other images, and the ids of some datasets are not numbers.

        Raises:
            ValueError: none of the images has ground truth here, or the file name of some ground
                truth fits several images.
        """
        # A COCO file has only the last part of each path: compare as many parts as it has.
        index: dict[str, Image | None] = {}
        for folders in {truth.file_name.count("/") for truth in self.images}:
            for image in images:
                parts = os.path.abspath(image.file_name).rsplit("/", folders + 1)
                end = "/".join(parts[-1 - folders :])
                index[end] = None if end in index else image
        selected: dict[int, TrueImage] = {}
        for truth in self.images:
            if truth.file_name not in index:
                continue
            same_file = index[truth.file_name]
            if same_file is None or same_file.image_id in selected:
                raise ValueError(
                    f"{self.source}: expected one image to label for each with true boxes, found "
                    f"several {truth.file_name}. Register the truth with the images' folder."
                )
            selected[same_file.image_id] = truth
        if not selected:
            example = images[0].file_name if len(images) else "none"
            raise ValueError(
                f"{self.source}: expected true boxes of the images that are labeled, such as "
                f"{example}, found {len(self.images)} other images, such as "
                f"{self.images[0].file_name}"
            )
        return selected


def read_truth(source: str | Path, classes: Sequence[str]) -> TrueBoxes:
    """Read the true boxes of the student's classes. Classes are identified by their names, boxes of
    other classes are left out.

    Args:
        source: a COCO JSON file, or the name of a dataset that is registered with Detectron2.
        classes: the student's K class names.

    Raises:
        ValueError: there is no such file or dataset, or it has no boxes of these classes.
    """
    records, names = _read_json(source) if str(source).endswith(".json") else _registered(source)
    index = {i: classes.index(name) for i, name in names.items() if name in classes}
    truths = []
    for record in records:
        rows = [a for a in record.get("annotations", ()) if a["category_id"] in index]
        corners = [
            BoxMode.convert(a["bbox"], a.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
            for a in rows
        ]
        boxes = np.array(corners, dtype=float).reshape(-1, 4)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        truth = TrueImage(
            record["file_name"],
            boxes,
            np.array([index[a["category_id"]] for a in rows], dtype=int),
            np.array([bool(a.get("iscrowd", 0)) for a in rows], dtype=bool),
            np.array([a.get("area", area) for a, area in zip(rows, areas, strict=True)], float),
        )
        truths.append(truth)
    if not any(len(truth.boxes) for truth in truths):
        raise ValueError(
            f"{source}: expected true boxes of {', '.join(classes)}, found none in {len(truths)} "
            f"images of the classes {', '.join(names.values())}"
        )
    return TrueBoxes(str(source), truths, np.isin(np.arange(len(classes)), list(index.values())))


def _read_json(path: str | Path) -> tuple[list[dict], dict[int, str]]:
    from pycocotools.coco import COCO

    if not Path(path).is_file():
        raise ValueError(f"truth: expected a COCO file, found none at {path}")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    records = [
        {"file_name": x["file_name"].lstrip("./"), "annotations": coco.imgToAnns[i]}
        for i, x in coco.imgs.items()
    ]
    return records, {c["id"]: c["name"] for c in coco.dataset["categories"]}


def _registered(name: str | Path) -> tuple[list[dict], dict[int, str]]:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if str(name) not in DatasetCatalog.list():
        raise ValueError(
            f"truth: expected a dataset registered with Detectron2, or a COCO file (.json), found "
            f"{str(name)!r}"
        )
    records = DatasetCatalog.get(str(name))
    names = MetadataCatalog.get(str(name)).get("thing_classes")
    if not names:
        raise ValueError(
            f"truth: expected a dataset with thing_classes, found none of {str(name)!r}"
        )
    # The same form of paths as in a manifest.
    records = [{**r, "file_name": os.path.abspath(r["file_name"])} for r in records]
    return records, dict(enumerate(names))


class _Judged(NamedTuple):
    """Labels compared with ground truth, of one image or of all images."""

    classes: np.ndarray  # (D,)
    areas: np.ndarray  # (D,) in square pixels
    kinds: np.ndarray  # (D,) "correct", or the kind of error, see `accuracy`
    ious: np.ndarray  # (D,) IoU with the object of its class that the label overlaps most
    offsets: np.ndarray  # (D, 4) of the label's edges from that object's, see `accuracy`
    objects: np.ndarray  # (G,) classes of the objects
    object_areas: np.ndarray  # (G,) in square pixels
    found: np.ndarray  # (G,) bool, whether a label has the object


def _judge(labels: Detections, truth: TrueImage) -> _Judged:
    same, plain = labels.classes[:, None] == truth.classes, ~truth.crowds
    objects = GroundTruth(truth.boxes[plain], truth.classes[plain])
    result, overlaps = match(labels, objects, IOU), measure_overlaps(labels, objects)
    kinds = np.select(
        [
            result.correct,
            overlaps.same >= IOU,
            overlaps.other >= IOU,
            overlaps.same >= NEAR,
        ],
        ["correct", "duplicate", "class", "localization"],
        "background",
    )
    # As in COCO, a label with at least half of its area in a crowd of its class does not count.
    low = np.maximum(labels.boxes[:, None, :2], truth.boxes[:, :2])
    high = np.minimum(labels.boxes[:, None, 2:], truth.boxes[:, 2:])
    areas = (labels.boxes[:, 2:] - labels.boxes[:, :2]).prod(1)
    # One more box of side 1, for images without objects.
    nearest = np.append(objects.boxes, [[0, 0, 1, 1]], axis=0)[overlaps.same_object]
    sides = (nearest[:, 2:] - nearest[:, :2]).clip(1e-9)
    offsets = (labels.boxes - nearest) / np.tile(sides, 2)
    inside = (high - low).clip(0).prod(2) / areas[:, None].clip(1e-9)
    counts = result.correct | ~((inside >= IOU) & same & truth.crowds).any(1)
    return _Judged(
        labels.classes[counts],
        areas[counts],
        kinds[counts],
        overlaps.same[counts],
        offsets[counts],
        objects.classes,
        truth.areas[plain],
        result.found,
    )


def _mean(part: np.ndarray) -> float | None:
    return float(part.mean()) if len(part) else None


def accuracy(
    pairs: Sequence[tuple[Detections, TrueImage]], classes: Sequence[str]
) -> dict[str, Any]:
    """Precision and recall at IoU 0.5 with COCO's matching: in total, by class and by size.

    Errors are classified over all classes, by a simple form of TIDE (D. Bolya et al., ECCV 2020).
    The first of these conditions that holds names the kind of a wrong label:

    - "duplicate": its IoU with an object of its class is at least `IOU`, but a label of higher
      score has taken the object;
    - "class": its IoU with an object of another class is at least `IOU`;
    - "localization": its IoU with an object of its class is at least `NEAR`;
    - "background": none of these.

    Crowds are neither objects nor background.

    Args:
        pairs: labels and ground truth of each image, at least one.
        classes: the student's K class names.

    Returns:
        among others "precision", "recall" and "mean_iou" (of correct labels with the object of
        their class that they overlap most), in [0, 1] or None where there is nothing to count.
        "edges" has the mean and the standard deviation of the distance from that object's edge to
        the label's, in shares of the object's width or height. Right and down are positive.
    """
    judged = zip(*(_judge(*pair) for pair in pairs), strict=True)
    rows = _Judged(*(np.concatenate(column) for column in judged))
    right = rows.kinds == "correct"

    def both(labels: Any, objects: Any) -> dict[str, float | None]:
        return {"precision": _mean(right[labels]), "recall": _mean(rows.found[objects])}

    def within(areas: np.ndarray, low: float, high: float) -> np.ndarray:
        return (areas >= low) & (areas < high)

    kinds = ["class", "localization", "background", "duplicate"]
    return {
        **both(..., ...),
        "labels": len(right),
        "correct": int(right.sum()),
        "objects": len(rows.objects),
        "mean_iou": _mean(rows.ious[right]),
        "edges": {
            name: {"mean": _mean(offsets), "std": float(offsets.std()) if len(offsets) else None}
            for name, offsets in zip(EDGES, rows.offsets[right].T, strict=True)
        },
        "errors": {kind: int((rows.kinds == kind).sum()) for kind in kinds},
        "missed": int((~rows.found).sum()),
        "sizes": {
            name: both(within(rows.areas, *area), within(rows.object_areas, *area))
            for name, area in AREAS.items()
        },
        "classes": {
            name: both(rows.classes == k, rows.objects == k) for k, name in enumerate(classes)
        },
    }


def average_precision(
    pairs: Sequence[tuple[Detections, TrueImage]], classes: Sequence[str]
) -> dict[str, Any]:
    """COCO's AP in percent, as Detectron2 computes it; None where there are no objects.

    Args:
        pairs, classes: see `accuracy`.
    """
    from detectron2.evaluation.coco_evaluation import COCOeval_opt
    from pycocotools.coco import COCO

    def rows(x: Detections | TrueImage, image: int, **columns: np.ndarray) -> list[dict]:
        boxes = BoxMode.convert(np.asarray(x.boxes, float), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        columns = {"category_id": x.classes, **columns}
        table = zip(boxes.tolist(), *(c.tolist() for c in columns.values()), strict=True)
        return [dict(zip(("bbox", *columns), r, strict=True), image_id=image) for r in table]

    truths = [
        row for i, (_, t) in enumerate(pairs) for row in rows(t, i, iscrowd=t.crowds, area=t.areas)
    ]
    labels = [row for i, (d, _) in enumerate(pairs) for row in rows(d, i, score=d.scores)]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(pairs))],
        "categories": [{"id": k} for k in range(len(classes))],
        "annotations": [row | {"id": n, "ignore": 0} for n, row in enumerate(truths, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval_opt(truth, truth.loadRes(labels) if labels else COCO(), "bbox")
        evaluation.params.imgIds = list(range(len(pairs)))
        evaluation.params.maxDets = [max([100, *(len(d.scores) for d, _ in pairs)])]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, 1); -1 without objects

    def mean(part: np.ndarray) -> float | None:
        part = part[part > -1]
        return 100 * float(part.mean()) if part.size else None

    return {
        "AP": mean(precision[:, :, :, 0]),
        "AP50": mean(precision[0, :, :, 0]),
        "AP75": mean(precision[5, :, :, 0]),
        **{f"AP{name[0]}": mean(precision[:, :, :, i]) for i, name in enumerate(AREAS, start=1)},
        "classes": {name: mean(precision[:, :, k, 0]) for k, name in enumerate(classes)},
    }
