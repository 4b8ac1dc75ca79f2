"""From which score on a teacher's box is a label.

Two bars per teacher and class: a box that reaches the high one is an object, one that reaches only
the low one marks a region that is neither object nor background, any other is dropped.

All have `fit(found, truths, owned)`, for one teacher:
    found: its boxes in N images, with the student's class indices.
    truths: what is there (see each), None where it is not needed.
    owned: (K,) bool, the student's classes that the teacher knows.
Those that cannot do without truths have `needs_truths`.
The images are the caller's choice. Bars fitted on the images that results are reported on, COCO's
val2017 say, have seen the test: take a part of the training set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from d2kd.matching import Detections, Truth, match
from d2kd.pseudo.records import Found

__all__ = ["Bars", "DistributionBars", "FBetaBars", "FixedBars", "MixtureBars"]

Truths = Iterable[Truth] | None
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bars:
    """Bars of one teacher; a score that equals a bar reaches it.

    Attributes:
        high, low: (K,) float32 like scores, in [0, 1], low <= high. 1 stands for "no labels".

    Raises:
        ValueError: shapes or values are others.
    """

    high: np.ndarray
    low: np.ndarray

    def __post_init__(self):
        for name in ("high", "low"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float32))
        if self.high.ndim != 1 or self.high.shape != self.low.shape:
            raise ValueError(
                "bars: expected one high and one low bar per class, found arrays of shape "
                f"{self.high.shape} and {self.low.shape}."
            )
        wrong = np.flatnonzero(~((self.low >= 0) & (self.low <= self.high) & (self.high <= 1)))
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"bars: expected 0 <= low <= high <= 1, found low {self.low[i]:g} and high "
                f"{self.high[i]:g} for class {i}."
            )


class FixedBars:
    """Bars that are given.

    The defaults are ours, for a teacher trained on all labels; published systems that label with
    weaker ones use 0.7 (Unbiased Teacher), 0.8 (Adaptive Teacher) or 0.9 (STAC).

    Args:
        high, low: one for all classes, or K.
    """

    def __init__(self, high: float | Sequence[float] = 0.5, low: float | Sequence[float] = 0.3):
        self.high, self.low = high, low

    def fit(self, found: Iterable[Found], truths: Truths, owned: np.ndarray) -> Bars:
        """The given bars; nothing is looked at."""
        return Bars(
            *(_per_class(name, getattr(self, name), len(owned)) for name in ("high", "low"))
        )


class FBetaBars:
    """The bar of each class where F-beta of the labels is highest, on labelled images.

    That maximising F-beta does as well as searching thresholds by training students is reported by
    arXiv 2210.10221. Beta, the low bar and the treatment of rare classes are ours: the low bar is
    the optimum of a larger beta, which asks for more recall and so never lies above the high one;
    a class with n < `objects` objects gets n / objects of its own optimum, the rest is that of all
    classes together. A class that has objects and no correct box counts as 1: it is not labelled.

    Args:
        beta, low_beta: recall is worth beta times precision, for the two bars; low_beta >= beta.
        iou: the least overlap of a correct box.
        objects: number of labelled objects from which a class's own optimum is trusted.
    """

    def __init__(self, beta: float = 1, low_beta: float = 2, iou: float = 0.5, objects: int = 20):
        if not 0 < beta <= low_beta:
            raise ValueError(f"bars: expected 0 < beta <= low_beta, found {beta} and {low_beta}.")
        self.beta, self.low_beta, self.iou, self.objects = beta, low_beta, iou, objects
        self.needs_truths = True

    def fit(self, found: Iterable[Found], truths: Truths, owned: np.ndarray) -> Bars:
        """Truths are those of the very images, in the same order.

        Raises:
            ValueError: no truths, another number of them than of images, or no correct box at all.
        """
        objects = np.zeros(len(owned), dtype=np.int64)
        scores, classes, correct = [], [], []
        for one, truth in zip(found, _needed(truths, "F-beta"), strict=True):
            hits = match(Detections(one.boxes, one.classes, one.scores), truth, self.iou)
            scores.append(one.scores)
            classes.append(one.classes)
            correct.append(hits.correct)
            objects += np.bincount(truth.classes, minlength=len(owned))
        objects[~owned] = 0  # what the teacher cannot know it has not missed
        scores, classes, correct = map(_concatenate, (scores, classes, correct))
        if not correct.any():
            raise ValueError(
                f"bars: none of the {len(scores)} boxes is a labelled object of its class at IoU "
                f"{self.iou:g}. Check the category table, and that boxes are in pixels of the file."
            )
        each = list(_by_class(classes, len(owned), scores, correct))
        if hopeless := [i for i, (_, hits) in enumerate(each) if objects[i] and not hits.any()]:
            logger.warning(f"Classes {hopeless} have labelled objects, and no box finds one")
        trust = np.minimum(objects / self.objects, 1)
        bars = []
        for beta in (self.beta, self.low_beta):
            own = [_best(*each[i], objects[i], beta) for i in range(len(owned))]
            everything = _best(scores, correct, objects.sum(), beta)
            bars.append(trust * own + (1 - trust) * everything)
        return Bars(*bars)


class DistributionBars:
    """Bars that let as many boxes pass as there should be objects of each class.

    LabelMatch (its released code): a class is expected N_c = images * objects per image * share of
    the class among objects; the high bar is the score of rank 0.2 N_c, the low bar that of rank
    N_c, neither below 0.05 (0.001 for the low one under domain shift with a given prior). Ours: it
    is done once and not while training, at least one box passes where N_c > 0 and none where it is
    0, and where fewer were found than expected all reach the bar.

    Args:
        share: of the expected objects, the part that reaches the high bar.
        floor, low_floor: the least that the bars may be; low_floor <= floor.
        objects_per_image: K, or one for all classes; for want of labelled images that tell.
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
                "bars: expected 0 < share <= 1 and low_floor <= floor, found "
                f"{share}, {low_floor} and {floor}."
            )
        self.share, self.floor, self.low_floor = share, floor, low_floor
        self.objects_per_image = objects_per_image
        self.needs_truths = objects_per_image is None

    def fit(self, found: Iterable[Found], truths: Truths, owned: np.ndarray) -> Bars:
        """Truths are those of any images with the same mixture of classes, often not of these.

        Raises:
            ValueError: neither truths nor `objects_per_image`, or not K of the latter.
        """
        found = list(found)
        prior = self.objects_per_image
        if prior is None:
            truths = list(_needed(truths, "the distribution of classes"))
            there = _concatenate([truth.classes for truth in truths]).astype(np.int64)
            prior = np.bincount(there, minlength=len(owned)) / max(len(truths), 1)
        expected = len(found) * _per_class("objects_per_image", prior, len(owned))
        classes = _concatenate([one.classes for one in found])
        scores = _concatenate([one.scores for one in found])
        bars = np.ones((2, len(owned)))
        for i, (one,) in enumerate(_by_class(classes, len(owned), scores)):
            if owned[i] and expected[i] > 0:
                ranks = np.rint(expected[i] * np.array([self.share, 1])).astype(int)
                best = np.append(-np.sort(-one), 0)  # of no box 0
                bars[:, i] = best[ranks.clip(1, max(len(one), 1)) - 1]
                bars[:, i] = np.maximum(bars[:, i], [self.floor, self.low_floor])
        return Bars(*bars)


class MixtureBars:
    """Bars where a class's scores part into two heaps, for images without labels.

    Consistent Teacher (its released code): of an image about as many boxes stay as its scores sum
    up to; the scores of a class are a mixture of two Gaussians, first guessed at the lowest and the
    highest; the bar is the likeliest score of the upper one; fewer than 4 scores are too few. Ours:
    all images' scores in place of a queue of 100, "about" is rounded up, the widths that EM starts
    from (a quarter of the range) and where it stops, and the low bar: the lowest score, above the
    lower Gaussian's mean, that rather belongs to the upper one.

    Some thousands of images are plenty.

    Args:
        high, low: the bars of a class with fewer than 4 scores, or with equal ones.
    """

    def __init__(self, high: float = 0.5, low: float = 0.3):
        self.high, self.low = high, low

    def fit(self, found: Iterable[Found], truths: Truths, owned: np.ndarray) -> Bars:
        """Truths are not looked at."""
        scores, classes = [], []
        for one in found:
            best = np.argsort(-one.scores, kind="stable")[: int(np.ceil(one.scores.sum()))]
            scores.append(one.scores[best])
            classes.append(one.classes[best])
        each = _by_class(_concatenate(classes), len(owned), _concatenate(scores))
        return Bars(*np.transpose([self._two(x) for (x,) in each]))

    def _two(self, scores: np.ndarray) -> tuple[float, float]:
        if len(scores) < 4 or np.ptp(scores) == 0:
            return self.high, self.low
        means, log = _mixture(scores.astype(np.float64))
        upper = (log[:, 1] > log[:, 0]) & (scores > means[0])
        if not upper.any():
            return self.high, self.low
        likelihood = np.where(upper, np.logaddexp(*log.T), -np.inf)
        return scores[likelihood.argmax()], scores[upper].min()


def _mixture(x: np.ndarray, steps: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """EM for two Gaussians: their means (2,), the lower first, and the (n, 2) logarithms of
    weight times density."""
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
        # The floor keeps a Gaussian around equal scores from becoming infinitely thin.
        variances = (belongs * (x[:, None] - means) ** 2).sum(axis=0) / mass + 1e-6
    order = means.argsort()
    return means[order], log[:, order]


def _best(scores: np.ndarray, correct: np.ndarray, objects: int, beta: float) -> float:
    """The highest score from which F-beta is at its best; 1 where no box is correct."""
    if not correct.any():
        return 1.0
    order = np.argsort(-scores, kind="stable")
    # F-beta but for the factor 1 + beta²: correct / (labels + beta² objects).
    f = correct[order].cumsum() / (np.arange(1, len(scores) + 1) + beta**2 * objects)
    f[:-1][np.diff(scores[order]) == 0] = 0  # equal scores pass together or not at all
    return float(scores[order][f.argmax()])


def _needed(truths: Truths, what: str) -> Iterable[Truth]:
    if truths is None:
        raise ValueError(f"bars: {what} needs labelled images. Give some, or use MixtureBars.")
    return truths


def _per_class(name: str, values: float | Sequence[float], num_classes: int) -> np.ndarray:
    if np.ndim(values) and len(values) != num_classes:
        raise ValueError(
            f"bars: expected {num_classes} values for {name}, one per class of the student, or a "
            f"single one, found {len(values)}."
        )
    return np.broadcast_to(np.asarray(values, dtype=float), num_classes)


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _by_class(
    classes: np.ndarray, num_classes: int, *arrays: np.ndarray
) -> Iterable[tuple[np.ndarray, ...]]:
    """For each of K classes, its part of each array."""
    order = np.argsort(classes, kind="stable")
    edges = np.searchsorted(classes[order], np.arange(1, num_classes))
    return zip(*(np.split(array[order], edges) for array in arrays), strict=True)
