"""Which detections count as equal."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2kd.export.compare import Agreement, check_agreement, compare, shifted, sizes_of


def found(*rows: tuple[float, float, int]) -> Instances:
    """Detections from (left side in pixels, score, class); all are 10 pixels wide and high."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10] for x, _, _ in rows]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows])
    classes = torch.tensor([label for _, _, label in rows], dtype=torch.long)
    return Instances((100, 100), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def test_the_order_is_free_and_the_largest_differences_are_kept():
    expected = found((0, 0.9, 1), (50, 0.9, 2), (20, 0.5, 0))
    agreement = compare(expected, found((50.0625, 0.9, 2), (0, 0.9005, 1), (20, 0.5, 0)))
    assert agreement[:2] == (3, 0)
    assert agreement.box == pytest.approx(0.0625) and agreement.score == pytest.approx(0.0005, 1e-3)


@pytest.mark.parametrize("other", [(0.2, 0.9, 1), (0, 0.902, 1), (0, 0.9, 2)])
def test_another_box_score_or_class_is_a_detection_of_its_own(other):
    assert compare(found((0, 0.9, 1)), found(other)).unmatched == 2


def test_each_detection_has_one_partner():
    twice = found((0, 0.9, 1), (0, 0.9, 1))
    assert compare(found((0, 0.9, 1)), twice).unmatched == 1
    assert compare(twice, twice).unmatched == 0


def test_as_many_pairs_as_possible():
    # The first row fits both columns, the second row only the first column.
    expected = found((0.0, 0.5, 0), (0.0625, 0.5, 0))
    assert compare(expected, found((0.0625, 0.5, 0), (-0.0625, 0.5, 0))).unmatched == 0


def test_outputs_without_detections():
    assert compare(found(), found()) == Agreement(0, 0)
    assert compare(found(), found((0, 0.9, 1))).unmatched == 1
    assert compare(found((0, 0.9, 1)), found()) == Agreement(1, 1)


def test_one_in_a_hundred_may_lie_on_a_threshold():
    full = found(*((x, 0.5, 0) for x in range(100)))
    assert check_agreement("a.onnx", [full], [full[1:]]).unmatched == 1
    with pytest.raises(
        ValueError, match=r"a\.onnx: expected the detections .* found 2 that differ"
    ):
        check_agreement("a.onnx", [full], [full[2:]])


def test_other_sizes_have_other_aspect_ratios():
    sizes = [tuple(x.shape) for x in sizes_of(torch.full((3, 100, 200), 7, dtype=torch.uint8))]
    assert sizes == [(3, 60, 150), (3, 130, 240)]
    assert all((x == 7).all() for x in sizes_of(torch.full((3, 10, 20), 7, dtype=torch.uint8)))
    thin = sizes_of(torch.zeros((3, 1, 5), dtype=torch.uint8))
    assert [tuple(x.shape) for x in thin] == [(3, 1, 3), (3, 1, 6)]


def test_shifted_images_have_the_same_pixels_elsewhere():
    image = torch.arange(4, dtype=torch.uint8).repeat(3, 2, 1)
    assert [x[0, 0].tolist() for x in shifted(image, 2)] == [[0, 1, 2, 3], [2, 3, 0, 1]]
