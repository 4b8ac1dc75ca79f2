"""FGD's one function over both maps against its equations written out, and its gradient."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from d2kd.methods.base import LevelPair
from d2kd.methods.fgd import FGD
from d2kd.methods.kernels import blocks
from d2kd.methods.kernels.fgd import PairSums, pair_sums


def by_equations(fgd, student, teacher, foreground, background):
    """The weighted terms, as FGD's paper writes them."""
    n, c, h, w = student.shape
    spatial, channel = {}, {}
    for name, x in (("s", student), ("t", teacher)):
        spatial[name] = h * w * (x.abs().mean(1).view(n, -1) / fgd.tau).softmax(1).view(n, h, w)
        channel[name] = c * (x.abs().mean((2, 3)) / fgd.tau).softmax(1)
    error = (teacher - student) ** 2 * spatial["t"][:, None] * channel["t"][..., None, None]
    unlike = [(x["s"] - x["t"]).abs().sum() for x in (spatial, channel)]
    shifted = fgd.student_context.p3(student) - fgd.teacher_context.p3(teacher)
    return {
        "foreground": fgd.alpha * (foreground[:, None] * error).sum() / n,
        "background": fgd.beta * (background[:, None] * error).sum() / n,
        "attention": fgd.gamma * sum(unlike) / n,
        "relation": fgd.lambd * (shifted**2).sum() / n,
    }


def make(size, dtype=torch.float64):
    """An FGD whose blocks are not the identity, both maps and masks."""
    n, c, h, w = size
    fgd = FGD(tau=0.3, alpha=0.7, beta=0.5, gamma=0.3, lambd=0.2)
    shape = ShapeSpec(channels=c, stride=8)
    fgd.setup_level(LevelPair("p3", "p3", shape, shape))
    for p in fgd.to(dtype).parameters():
        torch.nn.init.normal_(p)
    student = torch.randn(size, dtype=dtype, requires_grad=True)
    return fgd, student, torch.randn(size, dtype=dtype), *torch.rand(2, n, h, w, dtype=dtype)


def as_is(x):
    return x


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def strided(x):
    return x.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("layout", [as_is, channels_last, strided])
@pytest.mark.parametrize("size", [(2, 6, 3, 5), (1, 6, 3, 5), (2, 6, 1, 1), (2, 1, 3, 5)])
@pytest.mark.parametrize("together", [1, 60 // torch.get_num_threads(), 2**18])
def test_values_and_gradients_equal_the_equations(size, layout, together, monkeypatch):
    monkeypatch.setattr(blocks, "_CHANNELS", together)  # one channel in a block; two of 30; all
    fgd, student, teacher, *masks = make(size)
    found = fgd.terms("p3", layout(student), layout(teacher), *masks)
    expected = by_equations(fgd, student, teacher, *masks)
    leaves = [student, *fgd.parameters()]
    for term, value in expected.items():
        torch.testing.assert_close(found[term], value)
        # For each alone: in their sum, the largest would hide errors of the others.
        grads = [
            torch.autograd.grad(x, leaves, retain_graph=True, materialize_grads=True)
            for x in (found[term], value)
        ]
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


def keys_of(channels):
    shapes = [(1, channels), (1,)] * 2
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_gradients_equal_finite_differences():
    s, t = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    leaves = [s.requires_grad_(), *keys_of(3)]
    assert torch.autograd.gradcheck(lambda s, *keys: pair_sums(s, t, 0.5, *keys)[4:], leaves)
    assert torch.autograd.gradcheck(lambda s: pair_sums(s, t, 0.5, *leaves[1:])[:4:2], leaves[:1])


def pair_sums_by_autograd(s, t, tau, *keys):
    """`pair_sums` as plain PyTorch operations, differentiated by autograd: the reference."""
    contexts = []
    for x, weight, bias in ((s, *keys[:2]), (t, *keys[2:])):
        logits = (x * weight.unsqueeze(2)).sum(1, keepdim=True) + bias
        contexts.append((x * logits.softmax(2)).sum(2))
    difference = s - t
    channel_t = t.abs().mean(2)
    attention_t = channel_t.shape[1] * (channel_t / tau).softmax(1)
    return PairSums(
        spatial_s=s.abs().mean(1),
        spatial_t=t.abs().mean(1),
        channel_s=s.abs().mean(2),
        channel_t=channel_t,
        error=(attention_t.unsqueeze(2) * difference.square()).sum(1),
        square=difference.square().sum(1),
        difference=difference.sum(2),
        context_s=contexts[0],
        context_t=contexts[1],
    )


def test_sums_and_gradients_equal_those_by_autograd():
    s, t = torch.randn(2, 2, 6, 40, dtype=torch.float64)
    leaves = [s.requires_grad_(), *keys_of(6)]
    found, expected = (f(s, t, 0.5, *leaves[1:]) for f in (pair_sums, pair_sums_by_autograd))
    torch.testing.assert_close(found, expected)
    weights = [torch.randn_like(x) for x in expected]
    grads = [
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, sums, strict=True)), leaves)
        for sums in (found, expected)
    ]
    torch.testing.assert_close(*grads)


def test_student_without_gradient_still_trains_the_blocks():
    fgd, student, teacher, *masks = make((2, 6, 3, 5))
    losses = [
        sum(f(student.detach(), teacher, *masks).values())
        for f in (
            lambda *x: fgd.terms("p3", *x),
            lambda *x: by_equations(fgd, *x),
        )
    ]
    found, expected = (torch.autograd.grad(x, list(fgd.parameters())) for x in losses)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0])
def test_single_precision_is_kept_where_the_blocks_cancel_an_offset(offset):
    # The expanded square: student and teacher differ by an offset which the blocks take away.
    fgd, student, teacher, *masks = make((2, 6, 64, 64), torch.float32)
    for block in (fgd.student_context.p3, fgd.teacher_context.p3):
        torch.nn.init.zeros_(block.transform[-1].weight)
        torch.nn.init.zeros_(block.transform[-1].bias)
    torch.nn.init.constant_(fgd.teacher_context.p3.transform[-1].bias, offset)
    maps = student.detach() + offset, teacher
    found = fgd.terms("p3", *maps, *masks)["relation"]
    expected = by_equations(fgd.double(), *(x.double() for x in (*maps, *masks)))["relation"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6 * (1 + offset**2))


def test_nothing_of_the_maps_size_is_kept_but_the_maps():
    fgd, student, teacher, *masks = make((2, 64, 20, 20), torch.float32)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        fgd.terms("p3", student, teacher, *masks)
    assert sum(x >= 2 * student.numel() for x in kept.values()) == 2  # half a map, in bytes
