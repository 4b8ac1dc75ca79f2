"""Comparing cells: the equations as they stand, on the shapes and layouts that maps come in."""

import pytest
import torch

from d2kd.methods.kernels import blocks, pgd
from d2kd.methods.kernels.pgd import Comparison

TAU = 0.8


def compare_cells(s, t, tau=TAU):
    found = pgd.compare_cells(s.flatten(2), t.flatten(2), tau)
    return Comparison(*(x.view(len(s), *s.shape[2:]) for x in found))


def plain(s, t, tau=TAU):
    """The equations, with the gradient by autograd."""
    a_s, a_t = ((x.abs() / tau).softmax(1) * x.shape[1] for x in (s, t))
    return Comparison(
        s.abs().mean(1),
        t.abs().mean(1),
        (a_t * (s - t).square()).sum(1),
        (a_s - a_t).abs().sum(1),
    )


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return s, t


def layouts(x):
    """The same values, laid out otherwise in memory."""
    wide = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 2, dtype=x.dtype)
    cut = wide[..., 1:, 1:-1]
    return {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "cut out": cut.copy_(x),
        "expanded": x[:1].expand_as(x),
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "cut out", "expanded"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 4, 1, 1), (3, 1, 2, 2), (1, 256, 20, 30)])
def test_equals_the_equations_with_their_gradient(shape, layout, monkeypatch):
    if shape[1] < 256:
        monkeypatch.setattr(blocks, "_CELLS", 20)  # several blocks, the last one narrower
    s, t = (layouts(x)[layout].requires_grad_(i == 0) for i, x in enumerate(maps(*shape)))
    found, expected = compare_cells(s, t, TAU), plain(s, t)
    weights = torch.randn(4, *expected.error.shape, dtype=torch.float64)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
    gradients = [
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, terms, strict=True)), s)
        for terms in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("term", ["student", "error", "difference"])
def test_gradient_of_each_term_alone(term):
    s, t = maps(2, 3, 2, 2)
    assert torch.autograd.gradcheck(
        lambda s: getattr(compare_cells(s, t, TAU), term), s.requires_grad_()
    )


def test_zeros_and_equal_maps_have_the_gradient_of_abs():
    s, t = maps(1, 4, 2, 3)
    s[:, :2] = 0
    t[..., 0] = s[..., 0]
    s.requires_grad_()
    gradients = [
        torch.autograd.grad(sum(x.sum() for x in f(s, t, TAU)), s) for f in (compare_cells, plain)
    ]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][0][:, :2, :, 0].any()


def test_large_values_do_not_overflow():
    s, t = (1e4 * x.float() for x in maps(1, 8, 2, 2))
    s.requires_grad_()
    terms = compare_cells(s, t, TAU)
    sum(x.sum() for x in terms).backward()
    assert all(x.isfinite().all() for x in (*terms, s.grad))


def test_teacher_gets_no_gradient():
    s, t = maps(1, 3, 2, 2)
    terms = compare_cells(s.requires_grad_(), t.requires_grad_(), TAU)
    assert not terms.teacher.requires_grad
    sum(x.sum() for x in (terms.student, terms.error, terms.difference)).backward()
    assert s.grad.any() and t.grad is None


def test_maps_that_need_no_gradient():
    terms = compare_cells(*maps(2, 3, 2, 2), TAU)
    assert not any(x.requires_grad for x in terms)
