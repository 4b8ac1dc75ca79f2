"""The softmax attention that FGD and PGD share."""

from __future__ import annotations

from torch import Tensor

__all__ = ["softmax_attention"]


def softmax_attention(magnitude: Tensor, tau: float) -> Tensor:
    """Turn mean magnitudes into attention weights.

    Args:
        magnitude: (N, M) means of absolute values, of the M cells or of the M channels of each of
            N images.
        tau: temperature of the softmax, > 0.

    Returns:
        (N, M): M times the softmax over M. The weights of each image sum to M.
    """
    return (magnitude / tau).softmax(1) * magnitude.shape[1]
