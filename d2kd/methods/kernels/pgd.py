"""The channel attention of PGD (arXiv 2203.05469) and the comparison of two maps cell by cell.

The attention is A(x) = C softmax_c(|x| / tau). The equations are short, but plain autograd makes a
map of C channels for each step and for its gradient. On a CPU this costs time for memory traffic,
on a GPU it costs memory that is kept for the backward pass. So a CPU takes blocks of cells that fit
into its cache, and the backward pass starts again from the two maps and writes one gradient.

Shapes: N images, C channels, R cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import cell_blocks

__all__ = ["Comparison", "channel_attention", "compare_cells"]


class Comparison(NamedTuple):
    """Two maps s and t, summed over the channels of each cell; (N, R) each.

    Attributes:
        student, teacher: mean_c |s| and mean_c |t|.
        error: sum_c A(t) (s - t)^2.
        difference: sum_c |A(s) - A(t)|.
    """

    student: Tensor
    teacher: Tensor
    error: Tensor
    difference: Tensor


def compare_cells(student: Tensor, teacher: Tensor, tau: float) -> Comparison:
    """Compare two maps for PGD. Differentiable once, with respect to the student's map.

    Args:
        student, teacher: (N, C, R), fp32.
        tau: temperature of the attention, > 0.
    """
    return Comparison(*_Compare.apply(student, teacher, tau))


def channel_attention(features: Tensor, tau: float) -> Tensor:
    """softmax_c(|x| / tau) of (N, C, ...). It sums to 1 in each cell; A is C times this.

    Unlike FGD's channel attention, which is one vector for the whole map, each cell has its own.
    """
    return features.abs().div_(tau).softmax(1)


class _Compare(torch.autograd.Function):
    """`compare_cells` on (N, C, R)."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, tau: float) -> tuple[Tensor, ...]:
        ctx.save_for_backward(student, teacher)
        ctx.tau = tau
        n, c, r = student.shape
        found = [student.new_empty(n, 1, r) for _ in Comparison._fields]
        for s, t, mean_s, mean_t, error, difference in cell_blocks(student, teacher, *found):
            a_s, a_t = s.abs(), t.abs()
            torch.mean(a_s, 1, keepdim=True, out=mean_s)
            torch.mean(a_t, 1, keepdim=True, out=mean_t)
            a_s, a_t = (a.div_(tau).softmax(1) for a in (a_s, a_t))
            torch.sum((s - t).square_().mul_(a_t), 1, keepdim=True, out=error)
            torch.sum(a_s.sub_(a_t).abs_(), 1, keepdim=True, out=difference)
        mean_s, mean_t, error, difference = (x.squeeze(1) for x in found)
        ctx.mark_non_differentiable(mean_t)
        return mean_s, mean_t, error.mul_(c), difference.mul_(c)

    @staticmethod
    @once_differentiable
    def backward(ctx, mean: Tensor, _, error: Tensor, difference: Tensor):
        student, teacher = ctx.saved_tensors
        c, tau = student.shape[1], ctx.tau
        # The factors of each cell, without the signs and the attention of each channel.
        factors = [x.unsqueeze(1) for x in (mean / c, error * 2 * c, difference * (c / tau))]
        gradient = torch.empty_like(student)
        for s, t, g, mean, error, difference in cell_blocks(student, teacher, gradient, *factors):
            a_s, a_t = channel_attention(s, tau), channel_attention(t, tau)
            # d/d|s|: mean + difference * a_s * (sign - sum_c a_s sign), by softmax's own gradient.
            sign = (a_s - a_t).sign_()
            shift = (a_s * sign).sum(1, keepdim=True).mul_(difference).neg_()
            d_abs = torch.addcmul(shift, sign, difference, out=sign)
            d_abs = torch.addcmul(mean, d_abs, a_s, out=d_abs)
            d_abs *= s.sign()
            torch.addcmul(d_abs, s - t, a_t.mul_(error), out=g)
        return gradient, None, None
