"""Compare fusion with numbers of the released code, and with loops over boxes."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from d2kd.matching import Detections
from d2kd.pseudo.fuse import Fusion, Labels, _iou
from d2kd.pseudo.thresholds import Thresholds

K = 4
SIZE = (100, 120)  # height, width
METHODS = ["wbf", "nms", "soft_nms"]
NEVER = dict(conflict_iou=1.0)


def found(*rows):
    """Rows of x1, y1, x2, y2, score, class."""
    table = np.array(sorted(rows, key=lambda row: -row[4]), dtype=np.float32).reshape(-1, 6)
    return Detections(boxes=table[:, :4], scores=table[:, 4], classes=table[:, 5].astype(np.int64))


def thresholds(high=0.5, low=0.3):
    return Thresholds(np.full(K, high), np.full(K, low))


def fuse(*teachers, owned=None, levels=None, **settings) -> Labels:
    """Fuse. By default, all teachers own all classes and have the same thresholds."""
    owned = (
        np.ones((len(teachers), K), dtype=bool) if owned is None else np.array(owned, dtype=bool)
    )
    levels = levels or [thresholds()] * len(teachers)
    return Fusion(**settings)(teachers, owned, levels, SIZE)


def owning(*classes):
    return np.isin(np.arange(K), classes)


def random_teachers(seed, number=3, objects=10, classes=K):
    """Teachers that see the same objects with different errors. Some values are equal."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (objects, 2))
    truth = np.concatenate([corners, corners + rng.integers(1, 40, (objects, 2))], axis=1)
    kind = rng.integers(0, classes, objects)
    teachers = []
    for _ in range(number):
        seen = np.flatnonzero(rng.random(objects) < 0.8)
        boxes = truth[seen] + rng.integers(-2, 3, (len(seen), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        boxes = boxes.clip(0, 99)
        named = np.where(
            rng.random(len(seen)) < 0.2, rng.integers(0, classes, len(seen)), kind[seen]
        )
        scores = rng.integers(1, 20, len(seen)) / 20
        teachers.append(found(*np.column_stack([boxes, scores, named])))
    return teachers


def random_thresholds(seed, number=3):
    rng = np.random.default_rng(seed + 1000)
    low = rng.integers(2, 14, (number, K)) / 20
    return [Thresholds(one + rng.integers(0, 7, K) / 20, one) for one in low]


# Classes


def test_weighted_boxes_fusion_equals_the_released_code():
    # ensemble-boxes 1.0.9, weighted_boxes_fusion(boxes / 100, ..., iou_thr=0.55), boxes times 100.
    labels = fuse(
        found(
            (10, 10, 50, 50, 0.9, 0),
            (12, 60, 40, 90, 0.7, 0),
            (60, 10, 90, 40, 0.6, 0),
            (61, 12, 93, 41, 0.2, 0),
        ),
        found((12, 8, 54, 48, 0.8, 0), (14, 62, 41, 92, 0.75, 0), (11, 11, 49, 52, 0.3, 0)),
        found((8, 12, 51, 53, 0.85, 0), (70, 60, 95, 95, 0.4, 0)),
        levels=[thresholds(0.1, 0.1)] * 3,
    )
    boxes = [
        [10.0702, 10.1404, 51.3158, 50.5439],
        [13.0345, 61.0345, 40.5172, 91.0345],
        [60.25, 10.5, 90.75, 40.25],
        [70, 60, 95, 95],
    ]
    np.testing.assert_allclose(labels.boxes, boxes, rtol=0, atol=1e-4)
    np.testing.assert_allclose(labels.scores, [0.7125, 0.483333, 0.266667, 0.133333], atol=1e-6)
    assert labels.votes.tolist() == [3, 2, 1, 1]
    assert labels.teachers[1].tolist() == [True, True, False]


@pytest.mark.parametrize("method", METHODS)
def test_equal_boxes_of_two_teachers_become_one(method):
    one = found((10, 10, 40, 40, 0.8, 2))
    labels = fuse(one, one, method=method)
    np.testing.assert_array_equal(labels.boxes, one.boxes)
    np.testing.assert_array_equal(labels.scores, one.scores)
    assert (labels.classes.tolist(), labels.votes.tolist()) == ([2], [2])
    assert labels.teachers.tolist() == [[True, True]]
    assert labels.ignore.tolist() == [False]


@pytest.mark.parametrize("method", METHODS)
def test_boxes_of_a_class_that_one_teacher_owns_do_not_change(method):
    # The two boxes of class 1 overlap by 2/3. The teacher's own NMS has kept both.
    alone = found((10, 10, 40, 40.123, 0.77, 1), (10, 10, 40, 55, 0.66, 1))
    others = found((10, 10, 40, 42, 0.9, 0))
    owned = [owning(1), owning(0), owning(0, 2)]
    labels = fuse(alone, others, others, owned=owned, method=method, **NEVER)
    mine = labels.classes == 1
    np.testing.assert_array_equal(labels.boxes[mine], alone.boxes)
    np.testing.assert_array_equal(labels.scores[mine], alone.scores)
    assert labels.votes[mine].tolist() == [1, 1]
    assert (labels.classes == 0).sum() == 1


@pytest.mark.parametrize("method", METHODS)
def test_disjoint_classes_are_a_union(method):
    first = found((0, 0, 20, 20, 0.9, 0), (30, 0, 50, 20, 0.6, 1))
    second = found((0, 50, 20, 70, 0.8, 2), (30, 50, 50, 70, 0.7, 3))
    labels = fuse(first, second, owned=[owning(0, 1), owning(2, 3)], method=method)
    assert labels.classes.tolist() == [0, 2, 3, 1]
    np.testing.assert_array_equal(labels.scores, np.float32([0.9, 0.8, 0.7, 0.6]))
    assert labels.teachers.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]


def test_owners_that_found_nothing_lower_the_score_of_wbf():
    box, none = found((0, 0, 20, 20, 0.9, 0)), found()
    owned = [owning(0), owning(0, 1), owning(1)]  # two of three teachers know the class
    labels = fuse(box, none, none, owned=owned)
    assert labels.scores.tolist() == [np.float32(np.float32(0.9) / 2)]
    assert labels.ignore.tolist() == [False]  # thresholds apply to the teacher's own score


@pytest.mark.parametrize("method", ["wbf", "nms"])
@pytest.mark.parametrize("iou, number", [(0.49, 1), (0.5, 2), (0.51, 2)])
def test_boxes_are_fused_above_iou(method, iou, number):
    two = found((0, 0, 20, 20, 0.9, 0)), found((0, 0, 20, 10, 0.8, 0))  # IoU 1/2
    assert len(fuse(*two, method=method, iou=iou).boxes) == number


@pytest.mark.parametrize("seed", range(15))
def test_nms_keeps_what_torchvision_keeps(seed):
    teachers = random_teachers(seed, classes=1)
    labels = fuse(*teachers, method="nms", iou=0.4, levels=[thresholds(0, 0)] * 3)
    boxes = np.concatenate([t.boxes for t in teachers])
    scores = np.concatenate([t.scores for t in teachers])
    order = np.lexsort((*boxes.T[::-1], -scores))
    boxes, scores = boxes[order], scores[order]
    kept = nms(torch.tensor(boxes).double(), torch.tensor(scores).double(), 0.4).numpy()
    np.testing.assert_array_equal(labels.boxes, boxes[kept])
    np.testing.assert_array_equal(labels.scores, scores[kept])
    assert labels.votes.max() > 1


@pytest.mark.parametrize("seed", range(15))
def test_soft_nms_equals_a_loop(seed):
    teachers = random_teachers(seed, classes=1)
    labels = fuse(*teachers, method="soft_nms", iou=0.4, levels=[thresholds(0.02, 0.02)] * 3)
    left = [
        [float(s), *b] for t in teachers for s, b in zip(t.scores, t.boxes.tolist(), strict=True)
    ]
    done = []
    while left:
        left.sort(key=lambda row: (-row[0], *row[1:]))
        score, *box = left.pop(0)
        done.append([score, *box])
        for row in left:
            overlap = box_iou(torch.tensor([box]), torch.tensor([row[1:]])).item()
            row[0] *= 1 - overlap if overlap >= 0.4 else 1
    wanted = np.array([row for row in done if row[0] >= 0.02])
    got = np.column_stack([labels.scores, labels.boxes])
    got, wanted = (x[np.lexsort(x.T)] for x in (got, wanted))  # by coordinates
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert labels.votes.max() > 1


def test_iou_equals_torchvision():
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0, 50, (20, 4)) for _ in range(2))
    a[:, 2:] += a[:, :2]
    b[:, 2:] += b[:, :2]
    wanted = box_iou(torch.tensor(a), torch.tensor(b)).numpy()
    np.testing.assert_allclose(_iou(a[:, None], b), wanted, rtol=0, atol=1e-15)


# Thresholds


@pytest.mark.parametrize("method", METHODS)
def test_each_teacher_has_its_own_thresholds(method):
    sure = found((0, 0, 20, 20, 0.6, 0), (40, 0, 60, 20, 0.5, 0), (80, 0, 99, 20, 0.4, 0))
    shy = found((0, 50, 20, 70, 0.3, 0), (40, 50, 60, 70, 0.2, 0), (80, 50, 99, 70, 0.1, 0))
    labels = fuse(sure, shy, levels=[thresholds(0.6, 0.5), thresholds(0.3, 0.2)], method=method)
    got = {tuple(box[:2].tolist()): i for box, i in zip(labels.boxes, labels.ignore, strict=True)}
    assert got == {(0, 0): False, (40, 0): True, (0, 50): False, (40, 50): True}


@pytest.mark.parametrize("method", ["wbf", "nms"])
def test_one_member_at_its_threshold_is_enough_and_members_below_theirs_do_not_count(method):
    # The box of higher score is below its teacher's low threshold. It contributes neither to the
    # box, nor to the score, nor to the votes.
    labels = fuse(
        found((0, 0, 20, 22, 0.7, 0)),
        found((0, 0, 20, 20, 0.4, 0)),
        levels=[thresholds(0.9, 0.8), thresholds(0.4, 0.2)],
        method=method,
    )
    assert labels.boxes.tolist() == [[0, 0, 20, 20]]
    assert labels.teachers.tolist() == [[False, True]]
    assert labels.ignore.tolist() == [False]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(10))
def test_raising_a_threshold_never_adds_a_box(method, seed):
    teachers, levels = random_teachers(seed, objects=15, classes=2), random_thresholds(seed)
    before = fuse(*teachers, levels=levels, method=method, **NEVER)
    for t in range(3):
        for c in range(2):
            high, low = levels[t].high.copy(), levels[t].low.copy()
            for by in (0.1, 0.3, 0.6):
                low[c] = min(levels[t].low[c] + by, 1)
                high[c] = max(high[c], low[c])
                raised = [*levels[:t], Thresholds(high, low), *levels[t + 1 :]]
                after = fuse(*teachers, levels=raised, method=method, **NEVER)
                assert len(after.boxes) <= len(before.boxes)
                assert (~after.ignore).sum() <= (~before.ignore).sum()


def test_weights():
    boxes = found((0, 0, 20, 20, 0.75, 0), (40, 0, 60, 20, 0.4, 0))
    assert fuse(boxes).weights.tolist() == [1, 1]
    np.testing.assert_array_equal(fuse(boxes, weight="score").weights, boxes.scores)


# Conflicts


def chain(*scores, step=2):
    """One teacher per score, which owns one class. Each box conflicts with its neighbors only."""
    teachers = [found((i * step, 0, 40 + i * step, 20, s, i)) for i, s in enumerate(scores)]
    return teachers, [owning(i) for i in range(len(scores))]


def ignored(teachers, owned, **settings):
    """Whether the label of each class is a region to ignore, by class index."""
    labels = fuse(*teachers, owned=owned, **settings)
    return labels.ignore[labels.classes.argsort()].tolist()


@pytest.mark.parametrize(
    "scores, lost",
    [
        ((0.9, 0.8), [False, True]),
        ((0.7, 0.8), [True, False]),
        ((0.9, 0.8, 0.7), [False, True, False]),  # a loser wins against none
        ((0.7, 0.9, 0.8), [True, False, True]),
        ((0.6, 0.7, 0.8, 0.9), [True, False, True, False]),
        ((0.8, 0.8), [False, True]),  # equal scores: the lower class index wins
        ((0.8, 0.8, 0.8), [False, True, False]),
    ],
)
def test_conflicts_are_resolved_by_descending_score(scores, lost):
    teachers, owned = chain(*scores)  # IoU 38/42 with neighbors, 36/44 with the boxes after them
    for order in permutations(range(len(scores))):
        assert ignored([teachers[i] for i in order], [owned[i] for i in order]) == lost


def test_conflicts_of_random_boxes_equal_a_loop():
    fights = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        teachers = [
            found(*[(*rng.integers(0, 3, 2), *rng.integers(37, 40, 2), s, c) for s in (0.6, 0.9)])
            for c in range(K)
        ]
        owned = [owning(c) for c in range(K)]
        labels = fuse(*teachers, owned=owned, conflict_iou=0.88)
        rows = sorted(
            ((-float(s), c, *b.tolist()) for c, t in enumerate(teachers)
             for s, b in zip(t.scores, t.boxes, strict=True))
        )  # fmt: skip
        stay = []
        for row in rows:
            overlaps = [
                box_iou(torch.tensor([row[2:]]), torch.tensor([other[2:]])).item()
                for other in stay
                if other[1] != row[1]
            ]
            if all(x <= 0.88 for x in overlaps):
                stay.append(row)
        got = [
            (-float(s), int(c), *b.tolist())
            for s, c, b, i in zip(
                labels.scores, labels.classes, labels.boxes, labels.ignore, strict=True
            )
            if not i
        ]
        assert got == stay
        fights += labels.ignore.sum()
    assert fights > 40


def test_only_the_flag_of_the_loser_changes():
    teachers, owned = chain(0.9, 0.8)
    labels = fuse(*teachers, owned=owned)
    np.testing.assert_array_equal(labels.boxes[1], teachers[1].boxes[0])
    assert (labels.classes[1], labels.scores[1]) == (1, np.float32(0.8))


def test_classes_that_may_co_occur_are_both_kept():
    teachers, owned = chain(0.9, 0.8, 0.7, step=0)
    names = dict(classes=["person", "rider", "car", "bus"])
    assert ignored(teachers, owned, **names) == [False, True, True]
    for pair in (("rider", "person"), ("person", "rider")):
        assert ignored(teachers, owned, may_co_occur=[pair], **names) == [False, False, True]


def test_a_teacher_does_not_contradict_itself():
    both = found((0, 0, 40, 20, 0.9, 0), (0, 0, 40, 20, 0.8, 1))
    assert not fuse(both, found()).ignore.any()
    # A second teacher that found one of the two changes nothing.
    assert not fuse(both, found((0, 0, 40, 20, 0.7, 1))).ignore.any()
    assert fuse(*chain(0.9, 0.8)[0]).ignore.any()


def test_a_region_to_ignore_is_in_no_conflict():
    teachers, owned = chain(0.7, 0.6)
    levels = [thresholds(0.8, 0.5), thresholds(0.4, 0.3)]
    assert ignored(teachers, owned, levels=levels) == [True, False]


# Order, special cases and errors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(12))
def test_the_order_of_teachers_does_not_matter(method, seed):
    teachers, levels = random_teachers(seed, objects=20), random_thresholds(seed)
    teachers[1] = teachers[0] if seed % 2 else teachers[1]  # equal boxes with other thresholds
    owned = np.random.default_rng(seed).random((3, K)) < 0.7
    teachers = [t[k] for t, mine in zip(teachers, owned, strict=True) for k in [mine[t.classes]]]
    settings = dict(method=method, iou=0.4, conflict_iou=0.5)
    first = fuse(*teachers, owned=owned, levels=levels, **settings)
    assert len(first.boxes)
    for order in map(list, permutations(range(3))):
        labels = fuse(
            *[teachers[i] for i in order],
            owned=owned[order],
            levels=[levels[i] for i in order],
            **settings,
        )
        for name in ("boxes", "scores", "classes", "votes", "ignore", "weights"):
            a, b = getattr(first, name), getattr(labels, name)
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes()), name
        np.testing.assert_array_equal(labels.teachers, first.teachers[:, order])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_equal_scores_does_not_matter(method, seed):
    teachers = random_teachers(seed, objects=20, classes=2)
    teachers = [
        Detections(boxes=t.boxes, scores=np.full_like(t.scores, 0.6), classes=t.classes)
        for t in teachers
    ]
    turned = [
        Detections(boxes=t.boxes[::-1], scores=t.scores, classes=t.classes[::-1]) for t in teachers
    ]
    first, second = (fuse(*ts, method=method, conflict_iou=0.5) for ts in (teachers, turned))
    for name in ("boxes", "scores", "classes", "votes", "teachers", "ignore"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("teachers", [[found()], [found()] * 3, [found((0, 0, 9, 9, 0.1, 0))] * 2])
def test_nothing_found(method, teachers):
    labels = fuse(*teachers, method=method)
    shapes = [getattr(labels, n).shape for n in ("boxes", "scores", "votes", "teachers", "ignore")]
    assert shapes == [(0, 4), (0,), (0,), (0, len(teachers)), (0,)]


@pytest.mark.parametrize("method", METHODS)
def test_types(method):
    labels = fuse(*random_teachers(0), method=method)
    assert [
        getattr(labels, name).dtype
        for name in ("boxes", "scores", "classes", "votes", "teachers", "ignore", "weights")
    ] == [np.float32, np.float32, np.int64, np.int64, bool, bool, np.float32]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [1, 0])
def test_one_pixel_and_empty_boxes(method, side):
    corner = (119, 99, 119 + side, 99 + side, 0.9, 0)
    labels = fuse(found(corner, (5, 5, 5 + side, 5 + side, 0.8, 0)), found(corner), method=method)
    assert np.isfinite(labels.boxes).all() and np.isfinite(labels.scores).all()
    assert {tuple(box) for box in labels.boxes.tolist()} == {corner[:4], (5, 5, 5 + side, 5 + side)}
    if side:
        assert sorted(labels.votes.tolist()) == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_zero_cause_no_division_by_zero(method):
    none = found((0, 0, 9, 9, 0, 0))
    labels = fuse(none, none, levels=[thresholds(0, 0)] * 2, method=method)
    assert (labels.boxes == none.boxes).all() and (labels.scores == 0).all()


def test_boxes_are_clipped_at_the_image_and_refused_far_outside():
    labels = fuse(found((100, 50, 120.4, 100.4, 0.9, 0)))
    assert labels.boxes.tolist() == [[100, 50, 120, 100]]
    with pytest.raises(ValueError, match=r"100 high and 120 wide.*50 to 130"):
        fuse(found((100, 50, 130, 90, 0.9, 0)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(teachers=[]), "at least one teacher"),
        (dict(teachers=[found()] * 2, levels=[thresholds()]), "found 2, 1"),
        (dict(teachers=[found()], owned=np.ones((2, K))), r"\(2, 4\)"),
        (dict(teachers=[found()], owned=np.ones((1, K + 1))), r"\(1, 5\)"),
        (dict(teachers=[found((0, 0, 9, 9, 0.9, 1))], owned=[owning(0)]), "0 owns, found class 1"),
        (
            dict(teachers=[found()], classes=["a"], may_co_occur=[("a", "a")]),
            "expected 4 names.*found 1",
        ),
        (dict(teachers=[found()], may_co_occur=[("a", "b")]), r"\['a', 'b'\]"),
        (dict(teachers=[found()], method="median"), "found 'median'"),
        (dict(teachers=[found()], weight="half"), "and 'half'"),
        (dict(teachers=[found()], iou=0), "iou"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    teachers = arguments.pop("teachers")
    with pytest.raises(ValueError, match=message):
        fuse(*teachers, **arguments)
