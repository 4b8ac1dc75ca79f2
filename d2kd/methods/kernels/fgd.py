"""The sums over a pair of maps that FGD's equations need, and their gradient.

FGD uses each map several times. Plain autograd keeps a tensor of the map's size for each use and
then adds up as many gradients, so that memory traffic costs many times as much as the arithmetic.
Here a single function makes all the sums. It saves nothing of the maps' size but the maps
themselves, goes over them in blocks of channels that fit into a CPU's cache, and writes the
gradient once.

Shapes: N images, C channels, R = H * W cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention import softmax_attention
from .blocks import channel_blocks

__all__ = ["PairSums", "pair_sums"]


class PairSums(NamedTuple):
    """Sums over a student's map S and a teacher's map T.

    Attributes:
        spatial_s, spatial_t: (N, R), means of |S| and of |T| over channels.
        channel_s, channel_t: (N, C), means of |S| and of |T| over cells.
        error: (N, R), sum over channels of (S - T)^2 times the teacher's channel attention.
        square: (N, R), sum over channels of (S - T)^2.
        difference: (N, C), sum of S - T over cells.
        context_s, context_t: (N, C), sums over cells, weighted by the softmax of the cells' keys.
    """

    spatial_s: Tensor
    spatial_t: Tensor
    channel_s: Tensor
    channel_t: Tensor
    error: Tensor
    square: Tensor
    difference: Tensor
    context_s: Tensor
    context_t: Tensor


def pair_sums(s: Tensor, t: Tensor, tau: float, *keys: Tensor) -> PairSums:
    """Compute the sums. They are differentiable once, with respect to the student's map and keys.

    Args:
        s, t: student's and teacher's map, (N, C, R).
        tau: temperature of the attention, > 0.
        keys: weight (1, C) and bias (1,) of the layer that gives each cell of S its key; then
            weight and bias of the layer for T.
    """
    return PairSums(*_PairSums.apply(s, t, tau, *keys))


class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s, t, tau, weight_s, bias_s, weight_t, bias_t):
        n, c, r = s.shape
        key_s, key_t = (x.unsqueeze(2).expand(n, c, 1) for x in (weight_s, weight_t))
        spatial_s, channel_s, pool_s = _first_pass(s, key_s, bias_s)
        spatial_t, channel_t, pool_t = _first_pass(t, key_t, bias_t)
        attention = softmax_attention(channel_t, tau)
        weights = torch.stack([attention, torch.ones_like(attention)], 2)  # (N, C, 2)
        errors, per_channel = s.new_zeros(n, 2, r), []
        for x, y, w in channel_blocks(s, t, weights):
            d = x - y
            per_channel.append(
                [d.sum(2), *(torch.bmm(a, b.mT).squeeze(1) for a, b in ((pool_s, x), (pool_t, y)))]
            )
            errors.baddbmm_(w.mT, d.square_())
        difference, context_s, context_t = (torch.cat(x, 1) for x in zip(*per_channel, strict=True))
        ctx.save_for_backward(s, t, weights, key_s, pool_s, pool_t)
        ctx.mark_non_differentiable(spatial_t, channel_t)
        return (
            *(spatial_s, spatial_t, channel_s, channel_t, *errors.unbind(1)),
            *(difference, context_s, context_t),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, g_spatial, _, g_channel, __, g_error, g_square, g_difference, *g_contexts):
        # g_x is the loss's gradient with respect to x.
        s, t, weights, key_s, pool_s, pool_t = ctx.saved_tensors
        _, c, r = s.shape
        g_keys: list[Tensor] = []  # (N, 1, R) for each map
        for x, pool, g_context in zip((s, t), (pool_s, pool_t), g_contexts, strict=True):
            # From the context to the softmax of the keys, and through it to the keys.
            g_pool = torch.bmm(g_context.unsqueeze(1), x)
            g_keys.append(pool * (g_pool - (pool * g_pool).sum(2, keepdim=True)))
        # Context, keys and difference are linear in S. Each is a channel's factor times a cell's.
        channels = torch.stack([g_contexts[0], key_s.squeeze(2), g_difference], 2)
        cells = torch.cat([pool_s, g_keys[0], torch.ones_like(pool_s)], 1)
        g_spatial, g_channel = g_spatial.unsqueeze(1) / c, g_channel.unsqueeze(2) / r
        g_errors = 2 * torch.stack([g_error, g_square], 1)
        g_s, parts = torch.empty_like(s), []
        for g, x, y, w, u, v in channel_blocks(g_s, s, t, weights, g_channel, channels):
            torch.bmm(w, g_errors, out=g).mul_(x - y)
            g.addcmul_(x.sign(), g_spatial + u)
            g.baddbmm_(v, cells)
            parts.append([torch.bmm(a, b.mT) for a, b in zip(g_keys, (x, y), strict=True)])
        g_weights = [torch.cat(x, 2).sum(0) for x in zip(*parts, strict=True)]
        g_biases = [x.sum().view(1) for x in g_keys]
        return g_s, None, None, g_weights[0], g_biases[0], g_weights[1], g_biases[1]


def _first_pass(features: Tensor, key: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of |F| over channels (N, R) and over cells (N, C), and the keys' softmax (N, 1, R).

    Args:
        features: (N, C, R).
        key: (N, C, 1).
        bias: (1,).
    """
    n, c, r = features.shape
    logits, spatial, channel = features.new_zeros(n, 1, r), features.new_zeros(n, r), []
    for x, k in channel_blocks(features, key):
        logits.baddbmm_(k.mT, x)
        x = x.abs()
        spatial += x.sum(1)
        channel.append(x.mean(2))
    return spatial / c, torch.cat(channel, 1), (logits + bias).softmax(2)
