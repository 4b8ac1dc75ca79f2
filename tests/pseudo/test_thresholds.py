"""Compare thresholds with a search over all scores, and the mixture with scikit-learn."""

import numpy as np
import pytest

from d2kd.matching import Detections, GroundTruth
from d2kd.pseudo.thresholds import (
    DistributionThresholds,
    FBetaThresholds,
    FixedThresholds,
    MixtureThresholds,
    Thresholds,
    _mixture,
)

K = 3
ALL = np.ones(K, dtype=bool)


def place(i: int) -> list[float]:
    """The box of place i. Boxes of different places do not overlap."""
    return [20 * i, 0, 20 * i + 10, 10]


def found(*rows):
    """Rows of place, class, score."""
    rows = sorted(rows, key=lambda row: -row[2])
    boxes = np.array([place(i) for i, _, _ in rows], dtype=np.float32).reshape(-1, 4)
    scores = np.array([s for _, _, s in rows], dtype=np.float32)
    return Detections(
        boxes=boxes, scores=scores, classes=np.array([c for _, c, _ in rows], dtype=np.int64)
    )


def truth(*rows):
    """Rows of place, class."""
    boxes = np.array([place(i) for i, _ in rows], dtype=float).reshape(-1, 4)
    return GroundTruth(boxes, np.array([c for _, c in rows], dtype=int))


def random_images(seed: int, images: int = 12):
    """Images in which each place may have an object and a box. Some scores are equal."""
    rng = np.random.default_rng(seed)
    all_found, truths = [], []
    for _ in range(images):
        there = [(i, int(rng.integers(K))) for i in range(12) if rng.random() < 0.6]
        boxes = [(i, c, round(rng.beta(4, 3), 2)) for i, c in there if rng.random() < 0.8]
        boxes += [
            (i, int(rng.integers(K)), round(rng.beta(2, 4), 2))
            for i in range(12)
            if rng.random() < 0.7
        ]
        all_found.append(found(*boxes))
        truths.append(truth(*there))
    return all_found, truths


def f_beta(threshold, all_found, truths, classes, beta):
    """F-beta by counting. An object (a place and a class) is found at most once."""
    right = labels = objects = 0
    for one, true in zip(all_found, truths, strict=True):
        there = {(box[0], c) for box, c in zip(true.boxes, true.classes, strict=True)}
        objects += sum(c in classes for _, c in there)
        for box, score, c in zip(one.boxes, one.scores, one.classes, strict=True):
            if score >= threshold and c in classes:
                labels += 1
                right += (box[0], c) in there
                there.discard((box[0], c))
    return (1 + beta**2) * right / (labels + beta**2 * objects)


def brute_force(all_found, truths, classes, beta):
    thresholds = sorted({s for one in all_found for s in one.scores}, reverse=True)
    return max(
        thresholds, key=lambda threshold: f_beta(threshold, all_found, truths, classes, beta)
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("beta, low_beta", [(1, 2), (0.5, 1.5)])
def test_f_beta_thresholds_equal_a_search_over_all_scores(seed, beta, low_beta):
    all_found, truths = random_images(seed)
    thresholds = FBetaThresholds(beta, low_beta, objects=1).fit(all_found, truths, ALL)
    for c in range(K):
        assert thresholds.high[c] == brute_force(all_found, truths, {c}, beta)
        assert thresholds.low[c] == brute_force(all_found, truths, {c}, low_beta)
    assert (thresholds.low < thresholds.high).any()


def test_threshold_of_a_rare_class_is_a_mean_with_all_classes():
    all_found, truths = random_images(3)
    number = np.bincount(np.concatenate([t.classes for t in truths]))
    assert number.min() >= 10
    thresholds = FBetaThresholds(objects=100).fit(all_found, truths, ALL)
    for got, beta in ((thresholds.high, 1), (thresholds.low, 2)):
        together = brute_force(all_found, truths, set(range(K)), beta)
        for c in range(K):
            own, trust = brute_force(all_found, truths, {c}, beta), number[c] / 100
            assert got[c] == pytest.approx(trust * own + (1 - trust) * together, abs=1e-6)


def test_a_class_without_objects_gets_the_threshold_of_all_classes():
    thresholds = FBetaThresholds().fit([found((0, 0, 0.8), (1, 1, 0.3))], [truth((0, 0))], ALL)
    assert thresholds.high.tolist() == [np.float32(0.8)] * 3


def test_a_class_without_a_correct_box_is_not_labeled():
    boxes = found((0, 0, 0.6), *[(i, 1, 0.9) for i in range(1, 4)])
    objects = truth((0, 0), *[(i, 1) for i in range(5, 25)])
    thresholds = FBetaThresholds().fit([boxes], [objects], ALL)
    assert thresholds.high[1] == thresholds.low[1] == 1


def test_objects_of_unknown_classes_do_not_count_as_missed():
    all_found, truths = random_images(5)
    owned = np.array([True, False, True])
    known = [f[k] for f in all_found for k in [f.classes != 1]]
    lacking = [GroundTruth(t.boxes[k], t.classes[k]) for t in truths for k in [t.classes != 1]]
    assert sum(len(t.classes) for t in lacking) < sum(len(t.classes) for t in truths)
    fitted = [FBetaThresholds(objects=100).fit(known, t, owned) for t in (truths, lacking)]
    np.testing.assert_array_equal(fitted[0].high, fitted[1].high)
    np.testing.assert_array_equal(fitted[0].low, fitted[1].low)


@pytest.mark.parametrize("boxes", [[], [found()], [found((0, 1, 0.9))]])
def test_f_beta_without_a_correct_box_is_refused(boxes):
    with pytest.raises(ValueError, match="found none among"):
        FBetaThresholds().fit(boxes, [truth((0, 0))] * len(boxes), ALL)


@pytest.mark.parametrize("thresholds", [FBetaThresholds(), DistributionThresholds()])
def test_error_without_labeled_images(thresholds):
    with pytest.raises(ValueError, match="needs, found none"):
        thresholds.fit([found()], None, ALL)


def test_number_of_passing_boxes_equals_the_distribution():
    # 2 labeled images have 4 objects of class 0 and 1 object of class 1. 10 images are to label.
    truths = [truth((0, 0), (1, 0), (2, 0), (3, 0)), truth((0, 1))]
    scores = np.random.default_rng(0).permutation(np.linspace(0.06, 0.98, 120)).reshape(10, 2, 6)
    images = [
        found(*[(6 * c + i, c, one[c, i]) for c in range(2) for i in range(6)]) for one in scores
    ]
    thresholds = DistributionThresholds().fit(images, truths, ALL)
    for c, expected in ((0, 20), (1, 5)):
        own = np.concatenate([one.scores[one.classes == c] for one in images])
        assert (own >= thresholds.high[c]).sum() == 0.2 * expected
        assert (own >= thresholds.low[c]).sum() == expected
    assert thresholds.high[2] == thresholds.low[2] == 1  # no object is expected


def test_given_objects_per_image_and_floors():
    images = [found((0, 0, 0.9), (1, 0, 0.02), (2, 1, 0.5))] * 10
    thresholds = DistributionThresholds(objects_per_image=[2, 5, 1]).fit(images, None, ALL)
    np.testing.assert_array_equal(thresholds.high, np.float32([0.9, 0.5, 0.05]))
    np.testing.assert_array_equal(thresholds.low, np.float32([0.05, 0.5, 0.05]))
    shifted = DistributionThresholds(low_floor=0.001, objects_per_image=[2, 5, 1]).fit(
        images, None, ALL
    )
    assert shifted.low[0] == np.float32(0.02)


def test_the_mixture_equals_scikit_learn():
    x = [0.05, 0.06, 0.08, 0.08, 0.11, 0.12, 0.15, 0.17, 0.21, 0.3]
    x += [0.52, 0.6, 0.66, 0.7, 0.71, 0.73, 0.78, 0.8, 0.9, 0.97]
    means, log = _mixture(np.array(x))
    # From GaussianMixture of scikit-learn 1.9.1. It starts with equal weights, with the lowest and
    # the highest score as means, and with a quarter of the range as widths.
    np.testing.assert_allclose(means, [0.13259442, 0.73593213], rtol=0, atol=1e-4)
    likelihood = np.logaddexp(*log.T)[[0, 5, 10, 15, 19]]
    wanted = [0.36318104, 0.9862025, -0.97091952, 0.44178303, -1.21837887]
    np.testing.assert_allclose(likelihood, wanted, rtol=0, atol=1e-3)


def two_clusters(seed=0, images=200):
    """Images whose scores of class 0 are around 0.15 (noise) and 0.8 (objects).

    Class 1 has three boxes.
    """
    rng = np.random.default_rng(seed)
    found_all = []
    for i in range(images):
        rows = [(j, 0, s) for j, s in enumerate(rng.normal(0.8, 0.05, 2).clip(0, 1))]
        rows += [(9 + j, 0, s) for j, s in enumerate(rng.normal(0.15, 0.04, 4).clip(0, 1))]
        rows += [(20, 1, 0.7)] if i < 3 else []
        found_all.append(found(*rows))
    return found_all


def test_mixture_separates_two_clusters():
    thresholds = MixtureThresholds(high=0.6, low=0.4).fit(two_clusters(), None, ALL)
    assert 0.75 < thresholds.high[0] < 0.85
    assert 0.5 < thresholds.low[0] < 0.75
    assert thresholds.high[1:].tolist() == [np.float32(0.6)] * 2  # they have 3 scores and none
    assert thresholds.low[1:].tolist() == [np.float32(0.4)] * 2


def test_mixture_uses_as_many_boxes_of_an_image_as_the_sum_of_scores():
    # 0.9 + 0.8 + 0.2 + 0.05 = 1.95: two boxes of each image are used, and 0.9 and 0.8 are the two
    # clusters. With all four boxes, the threshold would be between 0.8 and 0.2.
    one = found((0, 0, 0.9), (1, 0, 0.8), (2, 0, 0.2), (3, 0, 0.05))
    thresholds = MixtureThresholds().fit([one] * 20, None, ALL)
    assert thresholds.low[0] == thresholds.high[0] == np.float32(0.9)


def test_scores_below_the_lower_cluster_do_not_belong_to_the_upper_one():
    # The upper cluster is so wide that 0.1 is more likely in it than in the narrow lower cluster at
    # 0.3.
    scores = [0.1, *np.linspace(0.29, 0.31, 40), *np.linspace(0.35, 1, 40)]
    images = [found((0, 0, s), (1, 1, 0.99)) for s in scores]
    assert MixtureThresholds().fit(images, None, ALL).low[0] > 0.3


def test_equal_scores_can_be_a_cluster():
    images = [found((0, 0, s)) for s in [*[1.0] * 30, *np.linspace(0.1, 0.2, 30)]]
    thresholds = MixtureThresholds(high=0.6).fit(images, None, ALL)
    assert thresholds.high[0] == thresholds.low[0] == 1


def test_equal_scores_only_give_the_default_thresholds():
    thresholds = MixtureThresholds().fit([found((0, 0, 0.7))] * 9, None, ALL)
    assert (thresholds.high[0], thresholds.low[0]) == (0.5, np.float32(0.3))


@pytest.mark.parametrize("seed", range(20))
def test_mixture_orders_its_thresholds_for_random_scores(seed):
    rng = np.random.default_rng(seed)
    shape = rng.uniform(0.3, 5, 2)
    images = [found(*[(i, 0, s) for i, s in enumerate(rng.beta(*shape, 5))]) for _ in range(30)]
    thresholds = MixtureThresholds().fit(images, None, ALL)  # `Thresholds` checks them, too
    assert 0 < thresholds.low[0] <= thresholds.high[0]


@pytest.mark.parametrize(
    "fitted", [MixtureThresholds(), DistributionThresholds(objects_per_image=[1, 1, 1])]
)
@pytest.mark.parametrize("images", [[], [found()], [found((0, 0, 0.5))]])
def test_few_or_no_boxes_still_give_thresholds(fitted, images):
    thresholds = fitted.fit(images, None, ALL)
    assert thresholds.high.shape == thresholds.low.shape == (K,)


def test_fixed_thresholds():
    thresholds = FixedThresholds(high=[0.5, 0.6, 0.7], low=0.2).fit([], None, ALL)
    np.testing.assert_array_equal(thresholds.high, np.float32([0.5, 0.6, 0.7]))
    np.testing.assert_array_equal(thresholds.low, np.float32([0.2, 0.2, 0.2]))
    with pytest.raises(ValueError, match="expected 3 values for high"):
        FixedThresholds(high=[0.5, 0.6]).fit([], None, ALL)


@pytest.mark.parametrize(
    "high, low, message",
    [
        ([0.5, 0.5], [0.3, 0.6], "found low 0.6 and high 0.5 for class 1"),
        ([np.nan], [0.1], "class 0"),
        ([1.5], [0.1], "high 1.5"),
        ([0.5], [0.1, 0.1], "shape"),
    ],
)
def test_wrong_thresholds_are_refused(high, low, message):
    with pytest.raises(ValueError, match=message):
        Thresholds(high, low)


@pytest.mark.parametrize(
    "wrong",
    [lambda: FBetaThresholds(2, 1), lambda: DistributionThresholds(floor=0.1, low_floor=0.2)],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 0 <"):
        wrong()
