"""Parts of maps that stay in a CPU's cache while all that there is to do with them is done.

An equation written out, step by step, is a walk over memory for each step, and autograd keeps what
each of them made. On a CPU that costs several times what the arithmetic does. On a GPU the parts
here are the whole.

Shapes: N images, C channels, R = H * W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["by_channels", "cell_blocks", "channel_blocks"]

# Values of a map in a block: of channels, for each thread, 1 MiB in fp32; of cells, 256 KiB.
_CHANNELS, _CELLS = 2**18, 2**16


def by_channels(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, *rest) -> Tensor:
    """`loss(student, teacher, *rest)`, a scalar that is a sum over channels, from a few at a time.

    The gradient with respect to the student's map is taken at once, and is all that is kept.
    Differentiable once, and in nothing else: neither in the teacher's map nor in parameters.

    Args:
        loss: of maps (N, any number of channels, R).
        student, teacher: (N, C, R).
        rest: whatever else it takes; numbers.
    """
    if not (torch.is_grad_enabled() and student.requires_grad):
        return sum(loss(s, t, *rest) for s, t in channel_blocks(student, teacher))
    return _ByChannels.apply(lambda s, t: loss(s, t, *rest), student, teacher)


class _ByChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, student, teacher):
        total, gradient = student.new_zeros(()), torch.empty_like(student)
        for s, t, g in channel_blocks(student, teacher, gradient):
            with torch.enable_grad():
                s = s.detach().requires_grad_()
                part = loss(s, t)
            g.copy_(*torch.autograd.grad(part, s))
            total += part.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, g_total):
        return None, ctx.saved_tensors[0] * g_total, None


def channel_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few channels of tensors (N, C, ?), the first one (N, C, R), one after another."""
    n, c, r = tensors[0].shape
    size = max(_CHANNELS * torch.get_num_threads() // (n * r), 1) if tensors[0].is_cpu else c
    return zip(*(x.split(size, 1) for x in tensors), strict=True)


def cell_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few cells of an image of tensors (N, ?, R), the first one (N, C, R)."""
    if not tensors[0].is_cpu:
        yield tensors
        return
    size = max(_CELLS // tensors[0].shape[1], 1)
    for image in zip(*(x.split(1) for x in tensors), strict=True):
        yield from zip(*(x.split(size, 2) for x in image), strict=True)
