"""Batch norms of a frozen detector, folded into its convolutions."""

from __future__ import annotations

from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["fold_norms"]


def fold_norms(model: nn.Module) -> int:
    """Let convolutions do what the batch norms right after them do, which saves a pass each.

    W x + b, normalised by stored statistics, is (W s) x + b' with one scale s and one bias b' for
    each channel. Changes the model, whose weights no checkpoint fits any longer. Norms that are
    modules of their own, outside Detectron2's `Conv2d`, stay: whether a convolution comes right
    before them cannot be told.

    Args:
        model: in evaluation mode.

    Returns:
        number of norms folded.
    """
    # Detectron2's Conv2d has the norm that it applies as a child; other ones have none.
    found = [
        conv
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d)
        and isinstance(norm := getattr(conv, "norm", None), (FrozenBatchNorm2d, nn.BatchNorm2d))
        and norm.running_mean is not None
    ]
    for conv in found:
        norm = conv.norm
        statistics = norm.running_mean, norm.running_var, norm.eps
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, *statistics, norm.weight, norm.bias
        )
        conv.norm = None
        conv.requires_grad_(False)
    return len(found)
