import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from d2kd.matching import Detections, GroundTruth, match, suppress_across_classes


def found(*rows):
    """Detections from rows of x1, y1, x2, y2, class, score."""
    table = np.array(rows, dtype=float).reshape(-1, 6)
    return Detections(boxes=table[:, :4], classes=table[:, 4].astype(int), scores=table[:, 5])


def truth(*rows):
    """Ground truth from rows of x1, y1, x2, y2, class."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    return GroundTruth(table[:, :4], table[:, 4].astype(int))


TWO = truth((0, 0, 10, 10, 3), (20, 0, 30, 10, 7))


def test_correct_wrong_class_and_missed():
    result = match(found((0, 0, 10, 10, 3, 0.9), (20, 0, 30, 10, 1, 0.8)), TWO)
    assert result.correct.tolist() == [True, False]
    assert result.found.tolist() == [True, False]
    assert result.errors == 2


def test_of_two_detections_of_an_object_the_more_confident_counts():
    result = match(found((0, 0, 10, 9, 3, 0.5), (0, 0, 10, 8, 3, 0.6)), TWO)
    assert result.correct.tolist() == [False, True]
    assert result.errors == 2  # the duplicate, and the object that nobody found


@pytest.mark.parametrize(
    "right, correct",
    [(15, True), (14.9, True), (5, True), (4.9, False), (20, True), (20.1, False)],
)
def test_overlap_counts_from_an_iou_of_one_half(right, correct):
    # The true box has width 10. The IoU is right / 10 for a narrower box and 10 / right for a wider
    # one.
    result = match(found((0, 0, right, 10, 3, 0.9)), truth((0, 0, 10, 10, 3)))
    assert result.correct.tolist() == [correct]


def test_each_detection_matches_the_object_with_the_largest_overlap():
    close = truth((0, 0, 10, 10, 3), (2, 0, 12, 10, 3))
    result = match(found((2, 0, 12, 10, 3, 0.9), (0, 0, 10, 10, 3, 0.8)), close)
    assert result.correct.all() and result.found.all()


def test_no_detections_and_no_objects():
    assert match(found(), TWO).errors == 2
    assert match(found((0, 0, 9, 9, 3, 0.9)), truth()).errors == 1
    assert match(found(), truth()).errors == 0


def test_from_detectron2():
    instances = Instances((20, 40))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 9.0, 9.0]]))
    instances.pred_classes = torch.tensor([7, 1])
    instances.scores = torch.tensor([0.75, 0.25])
    got = Detections.from_instances(instances).above(0.5)
    assert got.boxes.tolist() == [[1, 2, 3, 4]]
    assert (got.classes.tolist(), got.scores.tolist()) == ([7], [0.75])

    box = {"bbox": [10, 20, 5, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 4}
    got = GroundTruth.from_record({"annotations": [box, {**box, "iscrowd": 1}]})
    assert got.boxes.tolist() == [[10, 20, 15, 26]]
    assert got.classes.tolist() == [4]


def test_the_most_confident_of_overlapping_detections():
    # The second overlaps the first by 9/10, the third by 1/3; the fourth is elsewhere.
    boxes = found(
        (0, 0, 10, 10, 3, 0.5),
        (0, 0, 10, 9, 4, 0.6),
        (5, 0, 15, 10, 3, 0.4),
        (50, 0, 60, 9, 3, 0.9),
    )
    assert suppress_across_classes(boxes).scores.tolist() == [0.6, 0.4, 0.9]
    assert suppress_across_classes(found()).boxes.shape == (0, 4)
