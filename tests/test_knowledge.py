"""Ground truth as tensors, and what Knowledge offers besides its fields."""

import pytest
import torch
from detectron2.structures import RotatedBoxes

from d2kd import Knowledge, Targets
from tests import toys


def test_targets_are_padded_and_marked():
    inputs = [
        toys.image(boxes=[]),
        toys.image(boxes=[[1, 2, 3, 4], [5, 6, 7, 8]], classes=[2, 0]),
        toys.image(boxes=[[9, 9, 10, 10]], classes=[1]),
    ]
    targets = Targets.from_inputs(inputs, "cpu")
    assert targets.boxes.shape == (3, 2, 4)
    assert targets.classes.tolist() == [[-1, -1], [2, 0], [1, -1]]
    assert targets.valid.tolist() == [[False, False], [True, True], [True, False]]
    assert targets.boxes[1].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert torch.count_nonzero(targets.boxes[0]) == 0


def test_batch_without_any_box():
    targets = Targets.from_inputs([toys.image(boxes=[])], "cpu")
    assert targets.boxes.shape == (1, 0, 4) and targets.valid.shape == (1, 0)


def test_missing_ground_truth_is_named():
    inputs = toys.batch()
    del inputs[1]["instances"]
    with pytest.raises(ValueError, match="image 1 of the batch has no 'instances'"):
        Targets.from_inputs(inputs, "cpu")


def test_rotated_ground_truth_is_refused():
    inputs = toys.batch()
    inputs[1]["instances"].gt_boxes = RotatedBoxes(torch.tensor([[32.0, 32, 8, 8, 45]]))
    with pytest.raises(ValueError, match=r"gt_boxes: .* found RotatedBoxes of 5 numbers"):
        Targets.from_inputs(inputs, "cpu")


def test_maps_are_found_by_name():
    maps = {"p3": torch.zeros(1, 2, 3, 3)}
    knowledge = Knowledge(logits=maps, taps={"cls_tower.2": maps})
    assert knowledge.maps("logits") is maps and knowledge.maps("cls_tower.2") is maps
    assert knowledge.maps("features") == {} and knowledge.maps("box_tower.2") == {}


def test_centers_without_anchors_say_what_to_ask_for():
    with pytest.raises(ValueError, match=r'expected anchors, found none. Ask for "boxes"'):
        _ = Knowledge().centers


def test_changed_maps_keep_the_rest():
    def head(*_):
        return Knowledge()

    labels = [torch.zeros(4)], [torch.zeros(4, 4)]
    knowledge = Knowledge(
        padded_size=(32, 64),
        features={"p3": torch.ones(1, 2, 3, 3)},
        taps={"cls_tower.1": {"p3": torch.ones(1, 2, 3, 3)}},
        boxes=torch.zeros(1, 9, 4),
        anchor_labels=labels,
        run_head_from=head,
    )
    changed = knowledge.map_levels(lambda level, x: 2 * x if level == "p3" else x)
    assert (changed.features["p3"] == 2).all() and (changed.taps["cls_tower.1"]["p3"] == 2).all()
    assert changed.padded_size == (32, 64) and changed.anchor_labels is labels
    assert changed.run_head_from is head and changed.boxes is None
