"""The sums over a pair of maps that FGD's equations are made of, and their gradient.

Plain autograd keeps a tensor of the maps' size for each use of the student's map, and adds up as
many gradients: fresh memory then costs many times what the arithmetic does. Here one function has
all uses. It saves the maps alone, goes over them in blocks of channels that stay in a CPU's cache,
and writes the gradient once.

Shapes: N images, C channels, R = H * W cells, K sets of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["PairSums", "magnitudes", "pair_sums"]


class PairSums(NamedTuple):
    """Sums over a student's map S and a teacher's map T.

    Attributes:
        spatial: (N, R), mean of |S| over channels.
        channel: (N, C), mean of |S| over cells.
        errors: (N, K, R), sums of (S - T)^2 over channels, weighted in K ways.
        difference: (N, C), sum of S - T over cells.
        context: (N, C), sum of S over cells, weighted by the softmax of the cells' keys.
    """

    spatial: Tensor
    channel: Tensor
    errors: Tensor
    difference: Tensor
    context: Tensor


def pair_sums(
    student: Tensor, teacher: Tensor, weights: Tensor, key: Tensor, bias: Tensor
) -> PairSums:
    """Differentiable, once, in the student's map, the key and the bias; the rest is constant.

    Args:
        student, teacher: (N, C, H, W).
        weights: (N, K, C), of the channels in `PairSums.errors`.
        key, bias: (1, C, 1, 1) and (1,), of the 1x1 convolution that gives a cell's key.
    """
    s, t = student.flatten(2), teacher.flatten(2)
    return PairSums(*_PairSums.apply(s, t, weights, key.reshape(1, 1, -1), bias))


def magnitudes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Means of |F| over channels, (N, R), and over cells, (N, C).

    Args:
        features: (N, C, R).
    """
    n, c, r = features.shape
    spatial, channel = features.new_zeros(n, r), []
    for (x,) in _blocks(features):
        x = x.abs()
        spatial = spatial + x.sum(1)
        channel.append(x.mean(2))
    return spatial / c, torch.cat(channel, 1)


class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s, t, weights, key, bias):
        n, c, r = s.shape
        keys = torch.bmm(key.expand(n, 1, c), s) + bias  # (N, 1, R)
        pool = keys.softmax(2)
        context = torch.bmm(pool, s.mT).squeeze(1)
        errors, difference = s.new_zeros(n, weights.shape[1], r), []
        for x, y, w in _blocks(s, t, weights.mT):
            d = x - y
            difference.append(d.sum(2))
            errors.baddbmm_(w.mT, d.square_())
        ctx.save_for_backward(s, t, weights, key, pool)
        return *magnitudes(s), errors, torch.cat(difference, 1), context

    @staticmethod
    @once_differentiable
    def backward(ctx, g_spatial, g_channel, g_errors, g_difference, g_context):
        # g_x is the loss's gradient with respect to x.
        s, t, weights, key, pool = ctx.saved_tensors
        n, c, r = s.shape
        # From the context to the softmax of the keys, through it to the keys, and to their weights.
        g_pool = torch.bmm(g_context.unsqueeze(1), s)
        g_keys = pool * (g_pool - (pool * g_pool).sum(2, keepdim=True))  # (N, 1, R)
        g_key = torch.bmm(g_keys, s.mT).sum(0, keepdim=True)
        g_bias = g_keys.sum().view(1)
        if not ctx.needs_input_grad[0]:
            return None, None, None, g_key, g_bias
        # Context, keys and difference are linear in S: a channel's factor times a cell's.
        channels = torch.stack([g_context, key.view(1, c).expand(n, c), g_difference], 2)
        cells = torch.cat([pool, g_keys, torch.ones_like(pool)], 1)
        g_spatial, g_channel = g_spatial.unsqueeze(1) / c, g_channel.unsqueeze(2) / r
        g_s = torch.empty_like(s)
        for g, x, y, w, u, v in _blocks(g_s, s, t, 2 * weights.mT, g_channel, channels):
            torch.bmm(w, g_errors, out=g).mul_(x - y)
            g.addcmul_(x.sign(), g_spatial + u)
            g.baddbmm_(v, cells)
        return g_s, None, None, g_key, g_bias


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Slices of few channels of tensors (N, C, ?), which a CPU's cache holds; on a GPU, of all."""
    n, c, r = tensors[0].shape
    size = max(2**18 * torch.get_num_threads() // (n * r), 1) if tensors[0].is_cpu else c
    return zip(*(x.split(size, 1) for x in tensors), strict=True)
