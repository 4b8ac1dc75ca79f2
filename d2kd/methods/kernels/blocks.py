"""Process maps in blocks that fit into a CPU's cache.

An equation that is written out step by step reads and writes whole maps in each step, and autograd
keeps the result of each step. On a CPU this memory traffic costs several times as much as the
arithmetic. The functions here take a few channels or cells at a time. On a GPU one block is the
whole map.

Shapes: N images, C channels, R = H * W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["by_channels", "cell_blocks", "channel_blocks"]

# Values in a block. In fp32, a block of channels has 1 MiB for each thread, one of cells 256 KiB.
_CHANNELS, _CELLS = 2**18, 2**16


def by_channels(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, *rest) -> Tensor:
    """Compute `loss(student, teacher, *rest)`, which is a sum over channels, block by block.

    The gradient with respect to the student's map is computed in the forward pass and is the only
    tensor that is kept for the backward pass. The result is differentiable once, and only with
    respect to the student's map: not with respect to the teacher's map or to parameters.

    Args:
        loss: function of two maps (N, any number of channels, R), and of `rest`, to a scalar.
        student, teacher: (N, C, R).
        rest: further arguments of `loss`; numbers.
    """
    if not (torch.is_grad_enabled() and student.requires_grad):
        parts = (loss(s, t, *rest) for s, t in channel_blocks(student, teacher))
        return sum(parts, start=student.new_zeros(()))
    return _ByChannels.apply(lambda s, t: loss(s, t, *rest), student, teacher)


class _ByChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, student, teacher):
        total, gradient = student.new_zeros(()), torch.empty_like(student)
        for s, t, g in channel_blocks(student, teacher, gradient):
            with torch.enable_grad():
                s = s.detach().requires_grad_()
                part = loss(s, t)
            g.copy_(torch.autograd.grad(part, s)[0])
            total += part.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, g_total):
        return None, ctx.saved_tensors[0] * g_total, None


def channel_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors (N, C, any) into blocks of the same channels; the first tensor is (N, C, R)."""
    n, c, r = tensors[0].shape
    size = max(_CHANNELS * torch.get_num_threads() // (n * r), 1) if tensors[0].is_cpu else c
    return zip(*(x.split(size, 1) for x in tensors), strict=True)


def cell_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors (N, any, R) into blocks of the same cells of one image; the first tensor is
    (N, C, R)."""
    if not tensors[0].is_cpu:
        yield tensors
        return
    size = max(_CELLS // tensors[0].shape[1], 1)
    for image in zip(*(x.split(1) for x in tensors), strict=True):
        yield from zip(*(x.split(size, 2) for x in image), strict=True)
