import logging

import numpy as np
import pytest
import torch

from d2kd.matching import Detections
from d2kd.pseudo.collapse import CollapseWatch, agreement, divergence
from d2kd.pseudo.thresholds import Thresholds

HALF = Thresholds(np.array([0.5]), np.array([0.5]))


def found(*rows) -> Detections:
    """Boxes of one class from (x, score), each 10 pixels wide."""
    boxes = [[x, 0, x + 10, 10] for x, _ in rows]
    return Detections(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        scores=np.array([s for _, s in rows], dtype=np.float32),
        classes=np.zeros(len(rows), dtype=np.int64),
    )


def test_agreement_is_f1_of_the_boxes_that_reach_the_threshold():
    teacher = [found((0, 0.9), (50, 0.8), (90, 0.1)), found((0, 0.7))]
    student = [found((1, 0.6), (30, 0.9)), found((0, 0.2))]
    # The teacher has three boxes that count, the student two, and one pair matches.
    assert agreement(teacher, student, HALF) == pytest.approx(2 * 1 / (3 + 2))


def test_agreement_without_boxes_is_not_known():
    assert agreement([found((0, 0.1))], [found()], HALF) is None


def test_divergence_is_relative_to_the_norm_of_the_average():
    average, current = [torch.tensor([3.0, 0.0]), torch.tensor(4.0)], [torch.tensor([3.0, 1.0])] * 1
    current.append(torch.tensor(4.0))
    assert divergence(average, current) == pytest.approx(1 / 5)


GOOD = dict(boxes=3.0, objects=3.0, agreement=0.8, divergence=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(boxes=0.5), "0.50 boxes per image, while labeled images have 3.00"),
        (dict(boxes=16.0), "It may confirm its own errors"),
        (dict(divergence=0.6), "differ from their average by 60%"),
    ],
)
def test_warning_comes_once_until_the_trouble_is_over(caplog, change, message):
    watch = CollapseWatch()
    with caplog.at_level(logging.WARNING):
        watch.check(1, **GOOD)
        assert not caplog.records
        for step in (2, 3):
            watch.check(step, **{**GOOD, **change})
        watch.check(4, **GOOD)
        watch.check(5, **{**GOOD, **change})
    assert [message in r.getMessage() for r in caplog.records] == [True, True]
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == ["step 2", "step 5"]


def test_a_single_batch_without_agreement_is_no_trouble(caplog):
    watch = CollapseWatch()
    for step, value in enumerate((0.5, 0.5, 0.5, None, 0.5, 0.0, 0.0, 0.0, 0.0)):
        watch.check(step, **{**GOOD, "agreement": value})
    # The mean of the latest five is 0.1 at step 8, and was 0.2 at step 7.
    (record,) = caplog.records
    assert "step 8: the student agrees with its average in 10% of their boxes" in record.message


def test_without_labeled_images_counts_are_not_judged(caplog):
    CollapseWatch().check(1, **{**GOOD, "boxes": 0.0, "objects": None, "agreement": None})
    assert not caplog.records


def test_a_resumed_run_warns_no_second_time(caplog):
    quiet = dict(boxes=1.0, objects=100.0, agreement=0.5, divergence=0.0)
    first, resumed = CollapseWatch(), CollapseWatch()
    first.check(1, **quiet)
    resumed.load_state_dict(first.state_dict())
    resumed.check(2, **quiet)
    assert caplog.text.count("boxes per image") == 1
    assert resumed.state_dict() == {"warned": ["few"], "agreements": [0.5, 0.5]}
