"""What kinds of errors a detector makes, and how much AP each kind costs.

The kinds are defined by TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115, section 2.2). The order in
which an error is given a kind, and the treatment of crowds, are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..matching import Detections, GroundTruth, match, measure_overlaps

__all__ = ["KINDS", "ErrorEvaluator", "error_costs"]

KINDS = {
    "class": "overlaps an object of another class",
    "location": "overlaps an object of its class, but too little",
    "both": "overlaps an object of another class, and too little",
    "duplicate": "overlaps an object that another detection has found",
    "background": "overlaps no object",
    "missed": "an object that no detection of the kinds above points to",
}
_FOREGROUND, _BACKGROUND = 0.5, 0.1  # IoU: TIDE's t_f and t_b


class _Image(NamedTuple):
    """The detections of one image, sorted by score, and its objects.

    `kinds` has a kind, or "" for a correct detection, of each of the D detections. `objects` is the
    index of the object that an error of class or location points to.
    """

    detections: Detections
    truth: GroundTruth
    correct: np.ndarray
    found: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray


def _sort_errors(detections: Detections, truth: GroundTruth) -> _Image:
    """Give each wrong detection of an image its kind."""
    detections = detections[np.argsort(-detections.scores, kind="stable")]
    correct, found = match(detections, truth, _FOREGROUND)
    overlaps = measure_overlaps(detections, truth)
    kinds = np.select(
        [
            correct,
            overlaps.same >= _FOREGROUND,
            overlaps.other >= _FOREGROUND,
            overlaps.same >= _BACKGROUND,
            overlaps.other >= _BACKGROUND,
        ],
        ["", "duplicate", "class", "location", "both"],
        "background",
    )
    objects = np.where(kinds == "class", overlaps.other_object, overlaps.same_object)
    return _Image(detections, truth, correct, found, kinds, objects)


def _average_precision(scores: np.ndarray, correct: np.ndarray, positives: int) -> float:
    """COCO's average precision of one class: 101 recalls, precision made monotonous.

    COCOeval would match the detections again. Here, it is known which ones are correct.

    Args:
        scores: (D,) of the detections of all images.
        correct: (D,) bool.
        positives: number of objects, at least 1.

    Returns:
        in [0, 1].
    """
    order = np.argsort(-scores, kind="mergesort")
    hits = np.cumsum(correct[order])
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / positives, np.linspace(0, 1, 101))
    return float(np.append(precision, 0.0)[places].mean())


def _mended(image: _Image, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The image as if no error of a kind had been made.

    Returns:
        (D,) classes, correct and kept, of the detections; (G,) whether an object counts.
    """
    classes, correct = image.detections.classes.copy(), image.correct.copy()
    kept = image.kinds != kind
    counted = np.ones(len(image.truth.classes), dtype=bool)
    if kind == "missed":
        pointed = np.isin(image.kinds, ("class", "location"))
        counted[~image.found] = False
        counted[image.objects[pointed]] = True
    elif kind in ("class", "location"):
        # The best detection of an object that is still free becomes correct, the rest are removed.
        free = ~image.found
        for i in np.flatnonzero(~kept):
            if free[image.objects[i]]:
                free[image.objects[i]] = False
                classes[i] = image.truth.classes[image.objects[i]]
                kept[i] = correct[i] = True
    return classes, correct, kept, counted


def _mean_ap(images: Sequence[_Image], kind: str) -> float:
    """AP50 over the classes with objects, in percent, as if no error of a kind had been made."""
    parts = [_mended(image, kind) for image in images]
    kept = np.concatenate([p[2] for p in parts])
    scores = np.concatenate([image.detections.scores for image in images])[kept]
    classes = np.concatenate([p[0] for p in parts])[kept]
    correct = np.concatenate([p[1] for p in parts])[kept]
    objects = np.concatenate([image.truth.classes for image in images])
    counted = np.concatenate([p[3] for p in parts])
    values = []
    for k in np.unique(objects):
        of_class = classes == k
        positives = int((counted & (objects == k)).sum())
        if positives:
            values.append(_average_precision(scores[of_class], correct[of_class], positives))
    return 100 * float(np.mean(values)) if values else float("nan")


def error_costs(pairs: Sequence[tuple[Detections, GroundTruth]]) -> dict[str, float]:
    """How much AP50 would rise if the detector did not make the errors of each kind.

    A wrong class or location is corrected, unless the object is found already; other wrong
    detections are removed; missed objects do not count. The gains do not add up to 100 - AP50.

    Args:
        pairs: the detections and the objects of each image.

    Returns:
        "AP50", then each kind of `KINDS` -> gain; all in percent. NaN if there are no
        objects, or if it is "missed" and all objects are.
    """
    if not pairs:
        return dict.fromkeys(("AP50", *KINDS), float("nan"))
    images = [_sort_errors(*pair) for pair in pairs]
    base = _mean_ap(images, "none")
    return {"AP50": base, **{kind: _mean_ap(images, kind) - base for kind in KINDS}}


class ErrorEvaluator(DatasetEvaluator):
    """Detectron2 evaluator of `error_costs`. Crowd boxes of the ground truth are left out.

    Args:
        dataset_name: of the data set, or sets, whose images are evaluated.
    """

    def __init__(self, dataset_name: str | Sequence[str]):
        names = [dataset_name] if isinstance(dataset_name, str) else dataset_name
        records = itertools.chain.from_iterable(map(DatasetCatalog.get, names))
        self._truth = {x["image_id"]: GroundTruth.from_record(x) for x in records}
        self.reset()

    def reset(self) -> None:
        self._detections: dict[int | str, Detections] = {}

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """
        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances", in pixels of the original images.
        """
        for x, y in zip(inputs, outputs, strict=True):
            self._detections[x["image_id"]] = Detections.from_instances(y["instances"])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Returns:
            {"errors": see `error_costs`}; None in all processes but the first.
        """
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return None
        found = dict(itertools.chain.from_iterable(x.items() for x in gathered))
        return {"errors": error_costs([(found[i], self._truth[i]) for i in found])}
