"""How good labels are, before any student trains on them.

At the high bar the labels are the boxes alone. At the low bar the regions to ignore are counted as
boxes too: what would be, were the bar that low.

Shapes: K classes of the student, T teachers, R labels of all images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ...data.manifest import Image
from ...matching import Detections
from ..coco import is_kept
from ..records import Labels
from .truth import TrueBoxes, TrueImage, accuracy, average_precision

__all__ = ["assess"]

BINS = np.linspace(0, 1, 11)  # of scores
RATIO = (0.3, 3.0)  # boxes per image, of those of labelled data


def assess(
    images: Sequence[Image],
    labels: Mapping[int, Labels],
    classes: Sequence[str],
    teachers: Sequence[str],
    *,
    owned: np.ndarray | None = None,
    annotated: Mapping[int, np.ndarray] | None = None,
    truth: TrueBoxes | None = None,
    labelled: TrueBoxes | None = None,
    min_boxes: int = 20,
) -> dict[str, Any]:
    """Figures of labels, as JSON, with warnings.

    Only images that a student would see are counted (see `coco.is_kept`).

    Args:
        images: what was to be labelled.
        labels: image id -> labels; images without are passed over.
        classes: the student's, K names.
        teachers: T names, in the order of `Labels.teachers`.
        owned: (T, K) bool, the classes that each teacher knows; default: all.
        annotated: image id -> (K,) bool, the classes that were looked for; default: all.
        truth: true boxes of the same images, or of some of them, which neither the teachers nor
            the bars have seen; see `read_truth`.
        labelled: labelled data like these images, for comparison of how much is labelled; default:
            the truth.
        min_boxes: warn of classes that have fewer.

    Raises:
        ValueError: no image of the truth is among `images`.
    """
    everything, annotated = np.ones(len(classes), dtype=bool), annotated or {}
    found = {i.image_id: labels[i.image_id] for i in images if i.image_id in labels}
    kept = {i: x for i, x in found.items() if is_kept(x)}
    searched = {i: np.asarray(annotated.get(i, everything), dtype=bool) for i in kept}
    per_image = np.array([(~x.ignore).sum() for x in kept.values()], dtype=int)
    report: dict[str, Any] = {
        "images": {
            "asked": len(images),
            "labelled": len(kept),
            "empty": int((per_image == 0).sum()),
            "unsure": len(found) - len(kept),
        },
        "boxes_per_image": float(per_image.mean()) if len(kept) else None,
        "boxes_per_image_histogram": np.bincount(per_image).tolist(),
        **_scores(list(kept.values()), classes),
        "agreement": _agreement(list(kept.values()), teachers, owned),
    }
    if truth is not None:
        report["truth"] = _with_truth(images, kept, searched, classes, truth)
    if labelled is not None or truth is not None:
        everywhere = np.logical_and.reduce([everything, *searched.values()])
        report["reference"] = _reference(kept, everywhere, classes, labelled or truth)
    report["warnings"] = _warnings(report, searched, classes, min_boxes)
    return report


def _scores(labels: Sequence[Labels], classes: Sequence[str]) -> dict[str, Any]:
    none = np.zeros(0)
    scores = np.concatenate([none, *(x.scores for x in labels)])
    index = np.concatenate([none.astype(int), *(x.classes for x in labels)])
    ignore = np.concatenate([none.astype(bool), *(x.ignore for x in labels)])

    def figures(rows: np.ndarray) -> dict[str, Any]:
        boxes, regions = scores[rows & ~ignore], scores[rows & ignore]
        return {
            "boxes": len(boxes),
            "ignore_regions": len(regions),
            "mean_score": float(boxes.mean()) if len(boxes) else None,
            "score_histogram": np.histogram(boxes, BINS)[0].tolist(),
            "ignore_score_histogram": np.histogram(regions, BINS)[0].tolist(),
        }

    by_class = {name: figures(index == k) for k, name in enumerate(classes)}
    return {**figures(np.ones(len(scores), dtype=bool)), "classes": by_class}


def _agreement(
    labels: Sequence[Labels], teachers: Sequence[str], owned: np.ndarray | None
) -> list[dict[str, Any]]:
    """Of the boxes that one of two teachers found, how many both did; of classes that both know.

    Cohen's kappa would need a number of places where both rightly found nothing.
    """
    boxes = [(x.teachers[~x.ignore], x.classes[~x.ignore]) for x in labels]
    rows = []
    for a, b in combinations(range(len(teachers)), 2):
        both = either = 0
        for by, index in boxes:
            pair = by[:, [a, b]]
            if owned is not None:
                pair = pair[owned[a, index] & owned[b, index]]
            both, either = both + int(pair.all(1).sum()), either + int(pair.any(1).sum())
        rate = both / either if either else None
        names = [teachers[a], teachers[b]]
        rows.append({"teachers": names, "both": both, "either": either, "rate": rate})
    return rows


def _with_truth(
    images: Sequence[Image],
    labels: Mapping[int, Labels],
    searched: Mapping[int, np.ndarray],
    classes: Sequence[str],
    truth: TrueBoxes,
) -> dict[str, Any]:
    truths = truth.of(images)
    shared = [i for i in images if i.image_id in labels and i.image_id in truths]
    high, low = [], []
    for image in shared:
        theirs = truths[image.image_id]
        judged, x = truth.known & searched[image.image_id], labels[image.image_id]
        for pairs, rows in ((high, judged[x.classes] & ~x.ignore), (low, judged[x.classes])):
            found = Detections(x.boxes[rows], x.classes[rows], x.scores[rows])
            pairs.append((found, theirs.of(judged)))
    return {
        "source": truth.source,
        "images": len(shared),
        "unknown_classes": [name for name, k in zip(classes, truth.known, strict=True) if not k],
        **average_precision(high, classes),
        "high": accuracy(high, classes),
        "low": accuracy(low, classes),
    }


def _reference(
    labels: Mapping[int, Labels], everywhere: np.ndarray, classes: Sequence[str], truth: TrueBoxes
) -> dict[str, Any]:
    """How many boxes there are and of which classes, beside labelled data; of the classes that are
    labelled everywhere in both."""
    shared = np.flatnonzero(everywhere & truth.known)

    def count(index: Sequence[np.ndarray]) -> np.ndarray:
        return np.bincount(np.concatenate(index), minlength=len(classes))[shared]

    def objects(x: TrueImage) -> np.ndarray:
        return x.classes[~x.crowds]

    none = np.zeros(0, dtype=int)
    ours = count([none, *(x.classes[~x.ignore] for x in labels.values())])
    theirs = count([none, *map(objects, truth.images)])
    # One more of each: a class that one of them lacks would make the divergence infinite.
    p, q = ((n + 1) / (n + 1).sum() for n in (ours, theirs))
    mean, expected = ours.sum() / max(len(labels), 1), theirs.sum() / len(truth.images)
    return {
        "source": truth.source,
        "classes": [classes[k] for k in shared],
        "boxes_per_image": float(mean),
        "expected_boxes_per_image": float(expected),
        "ratio": float(mean / expected) if expected else None,
        "class_divergence": float((p * np.log(p / q)).sum()),
    }


def _warnings(
    report: Mapping[str, Any],
    searched: Mapping[int, np.ndarray],
    classes: Sequence[str],
    min_boxes: int,
) -> list[str]:
    if not report["images"]["labelled"]:
        return ["no image is labelled"]
    somewhere, warnings = np.logical_or.reduce(list(searched.values())), []
    for name, looked_for in zip(classes, somewhere, strict=True):
        count = report["classes"][name]["boxes"]
        if not looked_for:
            warnings.append(f"{name}: no teacher looked for it")
        elif count < min_boxes:
            warnings.append(f"{name}: {count} boxes, expected {min_boxes} or more")
    ratio = report.get("reference", {}).get("ratio")
    if ratio is not None and not RATIO[0] <= ratio <= RATIO[1]:
        warnings.append(
            f"boxes per image: {ratio:.2f} times those of labelled data, expected "
            f"{RATIO[0]:g} to {RATIO[1]:g} times"
        )
    return warnings
