"""Measure how good labels are, before a student trains on them.

Precision and recall are given at two thresholds. At the high one, the labels are the boxes alone.
At the low one, regions to ignore count as boxes too. This shows what you would get if you lowered
the high threshold to the low one.

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
from ..fuse import Labels
from .truth import TrueBoxes, TrueImage, accuracy, average_precision

__all__ = ["assess"]

BINS = np.linspace(0, 1, 11)  # edges of the histogram of scores
NEAR_ZERO = 1.0  # an AP in percent; labels below it have hardly anything to do with the truth
RATIO = (0.3, 3.0)  # allowed range of boxes per image, relative to labeled data
MISPLACED = 0.05  # mean distance of edges, in shares of the object's side, that is worth a warning
FEW = 20  # from fewer correct labels, nothing is concluded about edges


def assess(
    images: Sequence[Image],
    labels: Mapping[int, Labels],
    classes: Sequence[str],
    teachers: Sequence[str],
    *,
    owned: np.ndarray | None = None,
    annotated: Mapping[int, np.ndarray] | None = None,
    truth: TrueBoxes | None = None,
    reference: TrueBoxes | None = None,
    min_boxes: int = 20,
) -> dict[str, Any]:
    """Compute figures of labels, as JSON, with warnings.

    Only images that a student would see are counted (see `coco.is_kept`).

    Args:
        images: the images that were to be labeled.
        labels: image id -> labels. Images that have none are skipped.
        classes: the student's K class names.
        teachers: T names, in the order of `Labels.teachers`.
        owned: (T, K) bool, the classes that each teacher knows; default: all.
        annotated: image id -> (K,) bool, the classes that were searched for; default: all.
        truth: ground truth of the same images or of some of them; see `read_truth`. Neither the
            teachers nor the thresholds should have seen it.
        reference: labeled data similar to these images. The number of boxes per image and the
            shares of the classes are compared with it. Default: `truth`.
        min_boxes: warn of classes that have fewer boxes.

    Returns:
        the content of report.json.

    Raises:
        ValueError: no image of the truth is among `images`.
    """
    all_classes, annotated = np.ones(len(classes), dtype=bool), annotated or {}
    present = {i.image_id: labels[i.image_id] for i in images if i.image_id in labels}
    kept = {i: x for i, x in present.items() if is_kept(x)}
    searched = {i: np.asarray(annotated.get(i, all_classes), dtype=bool) for i in kept}
    per_image = np.array([(~x.ignore).sum() for x in kept.values()], dtype=int)
    report: dict[str, Any] = {
        "images": {
            "asked": len(images),
            "labeled": len(kept),
            "empty": int((per_image == 0).sum()),
            "unsure": len(present) - len(kept),
        },
        "boxes_per_image": float(per_image.mean()) if len(kept) else None,
        "boxes_per_image_histogram": np.bincount(per_image).tolist(),
        **_scores(list(kept.values()), classes),
        "agreement": _agreement(list(kept.values()), teachers, owned),
    }
    if truth is not None:
        report["truth"] = _with_truth(images, kept, searched, classes, truth)
    reference = reference or truth
    if reference is not None:
        everywhere = np.logical_and.reduce([all_classes, *searched.values()])
        report["reference"] = _reference(kept, everywhere, classes, reference)
    report["warnings"] = _warnings(report, searched, classes, min_boxes)
    return report


def _scores(labels: Sequence[Labels], classes: Sequence[str]) -> dict[str, Any]:
    empty = np.zeros(0)  # there may be no labels at all
    scores = np.concatenate([empty, *(x.scores for x in labels)])
    index = np.concatenate([empty.astype(int), *(x.classes for x in labels)])
    ignore = np.concatenate([empty.astype(bool), *(x.ignore for x in labels)])

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
    """For each two teachers: of the boxes that either found, how many both found. Only classes that
    both know are counted.

    Cohen's kappa is not defined here: it needs the number of places where both found nothing.
    """
    boxes = [(x.teachers[~x.ignore], x.classes[~x.ignore]) for x in labels]
    rows = []
    for a, b in combinations(range(len(teachers)), 2):
        both = either = 0
        for found_by, index in boxes:
            pair = found_by[:, [a, b]]
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
    truths = truth.select_images(images)
    shared = [i for i in images if i.image_id in labels and i.image_id in truths]
    high: list[tuple[Detections, TrueImage]] = []
    low: list[tuple[Detections, TrueImage]] = []
    for image in shared:
        judged, x = truth.known & searched[image.image_id], labels[image.image_id]
        objects = truths[image.image_id].select_classes(judged)
        for pairs, rows in ((high, judged[x.classes] & ~x.ignore), (low, judged[x.classes])):
            boxes = Detections(boxes=x.boxes[rows], classes=x.classes[rows], scores=x.scores[rows])
            pairs.append((boxes, objects))
    return {
        "source": truth.source,
        "images": len(shared),
        "unknown_classes": [name for name, k in zip(classes, truth.known, strict=True) if not k],
        **average_precision(high, classes),
        "high": accuracy(high, classes),
        "low": accuracy(low, classes),
    }


def _reference(
    labels: Mapping[int, Labels],
    everywhere: np.ndarray,
    classes: Sequence[str],
    reference: TrueBoxes,
) -> dict[str, Any]:
    """Compare the number of boxes and the shares of the classes with labeled data.

    Only classes that are labeled in all images of both are counted.

    Args:
        everywhere: (K,) bool, the classes that were searched for in all images.
    """
    shared = np.flatnonzero(everywhere & reference.known).tolist()

    def count(index: Sequence[np.ndarray]) -> np.ndarray:
        return np.bincount(np.concatenate(index), minlength=len(classes))[shared]

    def objects(x: TrueImage) -> np.ndarray:
        return x.classes[~x.crowds]

    empty = np.zeros(0, dtype=int)
    pseudo = count([empty, *(x.classes[~x.ignore] for x in labels.values())])
    true = count([empty, *map(objects, reference.images)])
    # Add one to each count: a class that is missing would make the divergence infinite.
    p, q = ((n + 1) / (n + 1).sum() for n in (pseudo, true))
    mean, expected = pseudo.sum() / max(len(labels), 1), true.sum() / len(reference.images)
    return {
        "source": reference.source,
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
    if not report["images"]["labeled"]:
        return ["no image is labeled"]
    somewhere, warnings = np.logical_or.reduce(list(searched.values())), []
    if not any(report["classes"][name]["boxes"] for name in classes):
        return [
            "no box reaches the high threshold. A student would learn that everything is "
            "background. Lower labels.thresholds, or train the teacher longer",
            *(_near_zero(report["truth"], classes) if "truth" in report else []),
        ]
    for name, is_searched in zip(classes, somewhere, strict=True):
        count = report["classes"][name]["boxes"]
        if not is_searched:
            warnings.append(f"{name}: no teacher searched for it")
        elif count < min_boxes:
            warnings.append(f"{name}: {count} boxes, expected {min_boxes} or more")
    if "truth" in report:
        warnings += _near_zero(report["truth"], classes)
        warnings += _misplaced(report["truth"]["high"])
    ratio = report.get("reference", {}).get("ratio")
    if ratio is not None and not RATIO[0] <= ratio <= RATIO[1]:
        warnings.append(
            f"boxes per image: {ratio:.2f} times the number in labeled data, expected "
            f"{RATIO[0]:g} to {RATIO[1]:g} times"
        )
    return warnings


def _near_zero(truth: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Warnings of labels that hardly match the ground truth, in total or of a class."""
    high = truth["high"]
    if truth["AP"] is not None and truth["AP"] < NEAR_ZERO:
        return [
            f"the labels hardly match the ground truth: AP {truth['AP']:.1f}, precision "
            f"{_figure(high['precision'])}, recall {_figure(high['recall'])}. Check the teacher's "
            f"test size (min_size_test), input_format, weights and `categories`"
        ]
    return [
        f"{name}: its labels hardly match the ground truth: AP {ap:.1f}, precision "
        f"{_figure(high['classes'][name]['precision'])}, recall "
        f"{_figure(high['classes'][name]['recall'])}. Check `categories`"
        for name in classes
        if (ap := truth["classes"][name]) is not None and ap < NEAR_ZERO
    ]


def _misplaced(high: Mapping[str, Any]) -> list[str]:
    """A warning if correct labels have an edge at another place than the objects, on average."""
    if high["correct"] < FEW:
        return []
    means = {
        name: edge["mean"]
        for name, edge in high["edges"].items()
        # Three standard errors: not by chance.
        if abs(edge["mean"]) > max(MISPLACED, 3 * edge["std"] / high["correct"] ** 0.5)
    }
    if not means:
        return []
    where = ", ".join(
        f"{name} edge {abs(mean):.2f} of the {'width' if name in ('left', 'right') else 'height'} "
        f"too far {_direction(name, mean)}"
        for name, mean in means.items()
    )
    return [
        f"the edges of correct labels are off in one direction: {where}. The teacher may have "
        f"learned from boxes that were drawn by other rules. A student learns these rules, too, "
        f"and its AP at high IoU suffers. Add some true labels of such images to the training of "
        f"both"
    ]


def _direction(edge: str, mean: float) -> str:
    if edge in ("left", "right"):
        return "right" if mean > 0 else "left"
    return "down" if mean > 0 else "up"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
