"""Compare the functions of the losses with torchvision and with values computed by hand."""

import torch
import torchvision
from detectron2.utils import comm
from torchvision.ops import generalized_box_iou_loss

from d2kd.detectors import losses
from d2kd.targets import Targets

from .scene import targets


def boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 50
    return torch.cat([corner, corner + torch.rand(count, 2) * 50 + 0.1], 1)


def test_iou_and_giou_equal_torchvision():
    a, b = boxes(40).double(), boxes(40).double()
    expected = torchvision.ops.box_iou(a, b)
    torch.testing.assert_close(losses.iou(a[:, None], b), expected, rtol=1e-9, atol=0)
    a.requires_grad_()
    found, expected = 1 - losses.giou(a, b), generalized_box_iou_loss(a, b, eps=0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(x.sum(), a)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_boxes_without_area_are_finite():
    a, b = torch.zeros(3, 4, requires_grad=True), torch.tensor([[0.0] * 4, [1.0] * 4, [0, 0, 2, 2]])
    for value in (losses.iou(a, b), losses.giou(a, b)):
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()
    assert losses.iou(a, b).tolist() == [0, 0, 0]


def test_an_image_without_positives_counts_as_one():
    matched = torch.tensor([[0, -1, 2], [-1, -1, -1], [1, -1, -1]])
    assert losses.num_positives(matched) == 2 + 1 + 1
    assert losses.num_positives(matched[1:2]) == 1


def test_targets_of_each_location():
    truth = targets()
    matched = torch.tensor([[5, -1, 0], [-1, 3, 3]])
    found, classes = losses.gather_targets(truth, matched)
    assert torch.equal(found[0, 0], truth.boxes[0, 5])
    assert torch.equal(found[1, 2], truth.boxes[1, 3])
    assert not found[matched < 0].any()
    c = int(truth.classes[1, 3])
    assert classes.tolist() == [[1, -1, 1], [-1, c, c]]


def test_targets_without_any_box():
    none = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0).long(), None, None, (0,))
    found, classes = losses.gather_targets(none, torch.full((1, 2), -1))
    assert not found.any()
    assert classes.tolist() == [[-1, -1]]


def test_one_hot_of_no_class_is_zero():
    assert losses.one_hot(torch.tensor([[1, -1]]), 3).tolist() == [[[0, 1, 0], [0, 0, 0]]]


def test_distances_to_the_sides():
    found = losses.ltrb_distances(
        torch.tensor([3.0, 5.0]), torch.tensor([[1.0, 1, 10, 20], [4, 5, 6, 7]])
    )
    assert found.tolist() == [[2, 4, 7, 15], [-1, 0, 3, 2]]


def test_mean_of_one_process_is_the_identity():
    x = torch.randn(3, requires_grad=True)
    assert torch.equal(losses.reduce_mean(x), x)
    assert not losses.reduce_mean(x).requires_grad


def test_mean_of_two_processes(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda x: x.add_(3.0))  # of the other process
    x = torch.tensor(5.0, requires_grad=True)
    assert losses.reduce_mean(x) == 4
    assert x == 5


def test_count_is_a_mean_over_processes(monkeypatch):
    monkeypatch.setattr("d2kd.detectors.losses.reduce_mean", lambda x: 3 * x)
    matched = torch.tensor([[0, 1, -1], [-1, -1, -1]])
    assert losses.num_positives(matched) == 3 * (2 + 1)
