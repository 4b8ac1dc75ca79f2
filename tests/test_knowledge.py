import pytest
import torch

from d2kd import Targets
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
