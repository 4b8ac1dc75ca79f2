"""Score thresholds: which of a teacher's boxes become labels.

Each teacher has two thresholds for each of the student's K classes. A box whose score reaches the
high threshold is labeled as an object. A box that reaches only the low one becomes an ignore
region, which is neither an object nor background in training. A box below both is dropped.

Every class here has a method `fit(detections, truths, owned) -> Thresholds`, which is called once
for each teacher:

    detections: the teacher's boxes in N images, with the student's class indices.
    truths: the ground truth that the method needs (see each class), or None.
    owned: (K,) bool, the student's classes that the teacher knows.

Classes that cannot be fitted without ground truth say so with `needs_truths = True`. If it must be
of the images of the detections, they also say `same_images = True`. The caller chooses the images.
Do not fit on the images that you report results on, such as COCO's val2017: the thresholds would
have seen the test. Use a part of the training set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ..matching import Detections, GroundTruth, match

__all__ = [
    "DistributionThresholds",
    "FBetaThresholds",
    "FixedThresholds",
    "MixtureThresholds",
    "ThresholdRule",
    "Thresholds",
]

Truths = Iterable[GroundTruth] | None
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of one teacher. A score that equals a threshold reaches it.

    Attributes:
        high, low: (K,) float32 in [0, 1], with low <= high. 1 means that the class is not labeled
            (no detector gives a score of exactly 1).

    Raises:
        ValueError: the shapes differ, or a value is outside its range.
    """

    high: np.ndarray
    low: np.ndarray

    def __post_init__(self):
        for name in ("high", "low"):  # float32 like scores, so that equal numbers compare as equal
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float32))
        if self.high.ndim != 1 or self.high.shape != self.low.shape:
            raise ValueError(
                "thresholds: expected one high and one low threshold per class, found arrays of "
                f"shape {self.high.shape} and {self.low.shape}."
            )
        wrong = np.flatnonzero(~((self.low >= 0) & (self.low <= self.high) & (self.high <= 1)))
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"thresholds: expected 0 <= low <= high <= 1, found low {self.low[i]:g} and high "
                f"{self.high[i]:g} for class {i}."
            )


@runtime_checkable
class ThresholdRule(Protocol):
    """A way to choose the thresholds of one teacher; see the module."""

    def fit(
        self, detections: Iterable[Detections], truths: Truths, owned: np.ndarray
    ) -> Thresholds: ...


class FixedThresholds:
    """Thresholds that you give.

    The defaults are ours, for a teacher that was trained on all labels of such images. Published
    systems whose teachers are weaker use a higher threshold: 0.7 (Unbiased Teacher), 0.8 (Adaptive
    Teacher) or 0.9 (STAC).

    Args:
        high, low: one number for all classes, or K numbers.
    """

    needs_truths = False

    def __init__(self, high: float | Sequence[float] = 0.5, low: float | Sequence[float] = 0.3):
        self.high, self.low = high, low

    def fit(
        self, detections: Iterable[Detections], truths: Truths, owned: np.ndarray
    ) -> Thresholds:
        """Return the given thresholds. Detections and truths are not used."""
        high, low = (_per_class(name, getattr(self, name), len(owned)) for name in ("high", "low"))
        return Thresholds(high, low)


class FBetaThresholds:
    """For each class, the thresholds at which F-beta is highest on labeled images.

    arXiv 2210.10221 reports that maximizing F-beta works as well as searching for thresholds by
    training students. Ours are beta, the low threshold and the treatment of rare classes:

    - The low threshold is the optimum for a larger beta. A larger beta asks for more recall, so the
      low threshold is never above the high one.
    - The optimum of a class with n < `objects` objects is unreliable. Its threshold is a mean of
      its own optimum, with weight n / objects, and the optimum of all classes together.
    - A class that has objects, but no correct box, has an optimum of 1: it is not labeled.

    Args:
        beta, low_beta: recall counts beta times as much as precision, for the high and for the low
            threshold. 0 < beta <= low_beta.
        iou: the smallest intersection over union of a correct box with its object.
        objects: number of labeled objects from which the optimum of a class alone is used.

    Raises:
        ValueError: beta and low_beta are outside their range.
    """

    needs_truths = True
    same_images = True

    def __init__(self, beta: float = 1, low_beta: float = 2, iou: float = 0.5, objects: int = 20):
        if not 0 < beta <= low_beta:
            raise ValueError(f"thresholds: expected 0 < beta <= low_beta, found {beta}, {low_beta}")
        self.beta, self.low_beta, self.iou, self.objects = beta, low_beta, iou, objects

    def fit(
        self, detections: Iterable[Detections], truths: Truths, owned: np.ndarray
    ) -> Thresholds:
        """Fit. The truths belong to the same images as the detections, in the same order.

        Raises:
            ValueError: there are no truths, their number is not the number of images, or not a
                single box is correct.
        """
        objects = np.zeros(len(owned), dtype=np.int64)
        score_parts, class_parts, correct_parts = [], [], []
        for found, truth in zip(detections, _required(truths, "F-beta"), strict=True):
            score_parts.append(found.scores)
            class_parts.append(found.classes)
            correct_parts.append(match(found, truth, self.iou).correct)
            objects += np.bincount(truth.classes, minlength=len(owned))
        objects[~owned] = 0  # a teacher cannot miss objects of classes that it does not know
        scores, classes, correct = map(_concatenate, (score_parts, class_parts, correct_parts))
        if not correct.any():
            raise ValueError(
                f"thresholds: expected boxes that match a labeled object of their class at IoU "
                f"{self.iou:g}, found none among {len(scores)}. Check categories, and that "
                f"boxes are in file pixels."
            )
        by_class = list(_by_class(classes, len(owned), scores, correct))
        if hopeless := [i for i, (_, hit) in enumerate(by_class) if objects[i] and not hit.any()]:
            logger.warning(f"Classes {hopeless} have labeled objects, but no box finds one of them")
        trust = np.minimum(objects / self.objects, 1)
        fitted = []
        for beta in (self.beta, self.low_beta):
            own = [_best(s, hit, n, beta) for (s, hit), n in zip(by_class, objects, strict=True)]
            together = _best(scores, correct, objects.sum(), beta)
            fitted.append(trust * own + (1 - trust) * together)
        return Thresholds(*fitted)


class DistributionThresholds:
    """Thresholds that let as many boxes pass as there should be objects of each class.

    This is LabelMatch's rule (as in its released code): for each class we expect N_c objects, the
    number of images times the objects per image times the share of the class among the objects.
    The high threshold is the score of rank 0.2 N_c, the low one the score of rank N_c. Neither may
    be below 0.05 (0.001 for the low one under domain shift with a given prior).

    Ours: the rule is applied once and not while a student trains; at least one box passes where
    N_c > 0 and none where N_c = 0; where fewer boxes were found than expected, all of them reach
    the threshold.

    Args:
        share: the part of the expected objects that reaches the high threshold, in (0, 1].
        floor, low_floor: the smallest values of the high and the low threshold;
            low_floor <= floor.
        objects_per_image: objects per image, K numbers or one for all classes. Give it if you have
            no labeled images from which to count.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        share: float = 0.2,
        floor: float = 0.05,
        low_floor: float = 0.05,
        objects_per_image: float | Sequence[float] | None = None,
    ):
        if not (0 < share <= 1 and low_floor <= floor):
            raise ValueError(
                "thresholds: expected 0 < share <= 1 and low_floor <= floor, found "
                f"{share}, {low_floor} and {floor}."
            )
        self.share, self.floor, self.low_floor = share, floor, low_floor
        self.objects_per_image = objects_per_image
        self.needs_truths = objects_per_image is None

    def fit(
        self, detections: Iterable[Detections], truths: Truths, owned: np.ndarray
    ) -> Thresholds:
        """Fit. The truths may be of other images with the same mixture of classes, and often are.

        Raises:
            ValueError: there are neither truths nor `objects_per_image`, or the latter are not K
                numbers.
        """
        detections, num_classes = list(detections), len(owned)
        if self.objects_per_image is None:
            truths = list(_required(truths, "the distribution of classes"))
            objects = _concatenate([truth.classes for truth in truths]).astype(np.int64)
            per_image = np.bincount(objects, minlength=num_classes) / max(len(truths), 1)
        else:
            per_image = _per_class("objects_per_image", self.objects_per_image, num_classes)
        expected = len(detections) * per_image
        classes = _concatenate([found.classes for found in detections])
        scores = _concatenate([found.scores for found in detections])
        thresholds = np.ones((2, num_classes))
        for i, (own_scores,) in enumerate(_by_class(classes, num_classes, scores)):
            if owned[i] and expected[i] > 0:
                ranks = np.rint(expected[i] * np.array([self.share, 1])).astype(int)
                ranked = np.append(-np.sort(-own_scores), 0)  # without any box, 0
                thresholds[:, i] = ranked[ranks.clip(1, max(len(own_scores), 1)) - 1]
                thresholds[:, i] = np.maximum(thresholds[:, i], [self.floor, self.low_floor])
        return Thresholds(*thresholds)


class MixtureThresholds:
    """Thresholds where the scores of a class split into two clusters. It needs no labels.

    This is Consistent Teacher's rule (as in its released code): of each image, we keep as many
    boxes as the sum of its scores. The scores of a class are modeled as a mixture of two Gaussians,
    whose means start at the lowest and the highest score. The threshold is the score of highest
    likelihood among the scores that belong to the upper Gaussian. A class needs at least 4 scores.

    Ours: scores of all images instead of a queue of 100; the number of kept boxes is rounded up;
    the initial widths of the Gaussians (a quarter of the range) and the stopping rule of EM; and
    the low threshold, which is the lowest score that is above the mean of the lower Gaussian and
    more likely to belong to the upper one.
    A few thousand images are enough.

    Args:
        high, low: the thresholds of a class with fewer than 4 scores, or with equal scores only.
    """

    needs_truths = False

    def __init__(self, high: float = 0.5, low: float = 0.3):
        self.high, self.low = high, low

    def fit(
        self, detections: Iterable[Detections], truths: Truths, owned: np.ndarray
    ) -> Thresholds:
        """Fit. Truths are not used."""
        scores, classes = [], []
        for found in detections:
            kept = np.argsort(-found.scores, kind="stable")[: int(np.ceil(found.scores.sum()))]
            scores.append(found.scores[kept])
            classes.append(found.classes[kept])
        by_class = _by_class(_concatenate(classes), len(owned), _concatenate(scores))
        return Thresholds(*np.transpose([self._fit_class(own) for (own,) in by_class]))

    def _fit_class(self, scores: np.ndarray) -> tuple[float, float]:
        if len(scores) < 4 or np.ptp(scores) == 0:
            return self.high, self.low
        means, log = _mixture(scores.astype(np.float64))
        upper = (log[:, 1] > log[:, 0]) & (scores > means[0])
        if not upper.any():
            return self.high, self.low
        likelihood = np.where(upper, np.logaddexp(*log.T), -np.inf)
        return scores[likelihood.argmax()], scores[upper].min()


def _mixture(x: np.ndarray, steps: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Fit two Gaussians to n numbers by EM.

    Returns:
        their means (2,), the lower one first, and the logarithms of weight times density (n, 2).
    """
    means = np.array([x.min(), x.max()])
    variances, weights = np.full(2, (np.ptp(x) / 4) ** 2), np.full(2, 0.5)
    before = -np.inf
    for _ in range(steps):
        square = (x[:, None] - means) ** 2
        log = np.log(weights) - 0.5 * (np.log(2 * np.pi * variances) + square / variances)
        total = np.logaddexp(*log.T)
        if total.mean() - before < 1e-7:
            break
        before = total.mean()
        belongs = np.exp(log - total[:, None])
        mass = belongs.sum(axis=0) + 1e-12
        weights, means = mass / mass.sum(), belongs.T @ x / mass
        # The constant keeps a Gaussian around equal scores from becoming infinitely narrow.
        variances = (belongs * (x[:, None] - means) ** 2).sum(axis=0) / mass + 1e-6
    order = means.argsort()
    return means[order], log[:, order]


def _best(scores: np.ndarray, correct: np.ndarray, objects: int | np.integer, beta: float) -> float:
    """The highest threshold at which F-beta reaches its maximum; 1 where no box is correct."""
    if not correct.any():
        return 1.0
    order = np.argsort(-scores, kind="stable")
    # F-beta without its constant factor 1 + beta²: correct / (labels + beta² objects).
    f = correct[order].cumsum() / (np.arange(1, len(scores) + 1) + beta**2 * objects)
    f[:-1][np.diff(scores[order]) == 0] = 0  # equal scores pass a threshold together
    return float(scores[order][f.argmax()])


def _required(truths: Truths, what: str) -> Iterable[GroundTruth]:
    if truths is None:
        raise ValueError(
            f"thresholds: expected labeled images, which {what} needs, found none. Set labels.fit, "
            f"or use MixtureThresholds."
        )
    return truths


def _per_class(name: str, values: float | Sequence[float], num_classes: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(
            f"thresholds: expected numbers in [0, 1] for {name}, found {values!r}."
        ) from None
    if array.ndim and len(array) != num_classes:
        raise ValueError(
            f"thresholds: expected {num_classes} values for {name}, one per class of the student, "
            f"or a single one, found {len(array)}."
        )
    return np.broadcast_to(array, num_classes)


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _by_class(
    classes: np.ndarray, num_classes: int, *arrays: np.ndarray
) -> Iterable[tuple[np.ndarray, ...]]:
    """For each of the K classes, the elements of each array that belong to it."""
    order = np.argsort(classes, kind="stable")
    edges = np.searchsorted(classes[order], np.arange(1, num_classes))
    return zip(*(np.split(array[order], edges) for array in arrays), strict=True)
