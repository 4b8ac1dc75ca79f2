"""Losses from blocks of channels against the same loss of whole maps."""

import pytest
import torch

from d2kd.methods.cwd import divergence
from d2kd.methods.kernels import blocks
from d2kd.methods.kernels.blocks import by_channels, cell_blocks, channel_blocks
from d2kd.methods.pkd import correlation


def maps(n=2, c=7, r=30):
    student, teacher = torch.randn(2, n, c, r, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.fixture(params=[1, 2**7, 2**18])
def several(request, monkeypatch):
    """One channel in a block, a few, and all."""
    monkeypatch.setattr(blocks, "_CHANNELS", request.param)


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("loss, rest", [(correlation, ()), (divergence, (0.7,))])
def test_equals_the_loss_of_whole_maps(loss, rest):
    student, teacher = maps()
    found, expected = by_channels(loss, student, teacher, *rest), loss(student, teacher, *rest)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(3 * x, student, retain_graph=True) for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_gradient_may_be_taken_twice():
    student, teacher = maps()
    loss = by_channels(correlation, student, teacher)
    first = torch.autograd.grad(loss, student, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, student), first)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    student, teacher = maps()
    with mode():
        found = by_channels(correlation, student, teacher)
        torch.testing.assert_close(found, correlation(student, teacher))
    assert not found.requires_grad


def test_nothing_is_kept_but_the_gradient():
    student, teacher = maps(c=64)
    loss = by_channels(correlation, student, teacher)
    assert [x.numel() for x in loss.grad_fn.saved_tensors] == [student.numel()]


@pytest.mark.usefixtures("several")
def test_channel_blocks_are_all_channels_once():
    maps_, factors = torch.arange(84).view(2, 7, 6), torch.arange(14).view(2, 7, 1)
    found = [torch.cat(x, 1) for x in zip(*channel_blocks(maps_, factors), strict=True)]
    assert all(torch.equal(*x) for x in zip(found, (maps_, factors), strict=True))


def test_cell_blocks_are_all_cells_once(monkeypatch):
    monkeypatch.setattr(blocks, "_CELLS", 28)  # four cells of seven channels
    maps_, sums = torch.arange(84).view(2, 7, 6), torch.zeros(2, 1, 6)
    sizes = []
    for x, total in cell_blocks(maps_, sums):
        total += x.sum(1, keepdim=True)
        sizes.append(tuple(x.shape))
    assert torch.equal(sums, maps_.sum(1, keepdim=True).float())
    assert sizes == [(1, 7, 4), (1, 7, 2)] * 2
    monkeypatch.setattr(blocks, "_CELLS", 1)  # never less than a cell
    assert [x.shape for (x,) in cell_blocks(maps_)] == [(1, 7, 1)] * 12
