"""How much a location weighs for a box: inside or not, quality, Gaussian, prior.

Shapes: N images, G boxes of an image, R locations of all levels, K classes, W candidates of a box,
M chosen candidates. All coordinates are in pixels of the padded input.
"""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

__all__ = [
    "center_prior",
    "density",
    "fit_gaussian",
    "quality",
    "score_and_iou",
    "strictly_inside",
    "top_k",
]

# Variance in px^2. The released code adds jitter that is uniform over 0.1 px; this is its variance.
RIDGE = 1 / 1200


def strictly_inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """Whether a location lies inside a box, more than 1e-10 px away from each of its sides.

    Args:
        centers: (R, 2).
        boxes: (N, G, 4).

    Returns:
        (N, G, R) bool.
    """
    x, y = centers.unbind(-1)
    x0, y0, x1, y1 = boxes[..., None].unbind(2)
    eps = 1e-10
    return (x - x0 > eps) & (y - y0 > eps) & (x1 - x > eps) & (y1 - y > eps)


def score_and_iou(
    logits: Tensor, boxes: Tensor, truth: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """The teacher's score for the class of each box, and the IoU of its predicted box with the box.

    Args:
        logits: (N, R, K).
        boxes: (N, R, 4), predicted.
        truth, classes: (N, G, 4) and (N, G).

    Returns:
        (N, G, R) each, in [0, 1].
    """
    r, num_classes = logits.shape[1:]
    # Rows without a box have class -1. With K = 1, one logit holds for all classes.
    index = classes.clamp(0, num_classes - 1)[..., None].expand(-1, -1, r)
    score = logits.transpose(1, 2).gather(1, index).sigmoid()
    iou = [pairwise_iou(Boxes(t), Boxes(b)) for t, b in zip(truth, boxes, strict=True)]
    return score, torch.stack(iou)


def quality(score: Tensor, iou: Tensor, xi: float) -> Tensor:
    """q = score^(1 - xi) * IoU^xi, in [0, 1]."""
    return score.pow(1 - xi) * iou.pow(xi)


def top_k(quality: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose the best `k` candidates of each box, or all if there are fewer.

    Args:
        quality: (..., W), >= 0.
        allowed: (..., W) bool, the candidates that may be chosen.

    Returns:
        quality, which is -1 for an entry without a candidate, and the candidates' columns in
        [0, W). Both are (..., M) with M = min(k, W).
    """
    return quality.masked_fill(~allowed, -1).topk(min(k, quality.shape[-1]), -1)


def fit_gaussian(points: Tensor, chosen: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to the chosen points by maximum likelihood.

    The released code adds random jitter to the points, so that equal or collinear points have an
    area. `ridge` does the same without randomness. The fit is in fp64: if the points lie on a
    diagonal line, fp32 cannot tell the determinant from 0.

    Args:
        points: (..., M, 2).
        chosen: (..., M) bool. If no point is chosen, the result is finite and has no meaning.
        ridge: in px^2, added to the variance along x and y.

    Returns:
        mean (..., 2) and inverse covariance (..., 2, 2), fp64.
    """
    share = chosen / chosen.sum(-1, keepdim=True).clamp(min=1).double()
    mean = (share[..., None] * points).sum(-2)
    x, y = (points - mean[..., None, :]).unbind(-1)
    xx, yy = (share * x * x).sum(-1) + ridge, (share * y * y).sum(-1) + ridge
    xy = (share * x * y).sum(-1)
    # 1e-10 is from the released code. The ridge keeps the determinant far above it.
    inverse = torch.stack([yy, -xy, -xy, xx], -1) / (xx * yy - xy * xy + 1e-10)[..., None]
    return mean, inverse.unflatten(-1, (2, 2))


def density(points: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """exp(-1/2 d^T Sigma^-1 d) for d = point - mean: a Gaussian that is 1 at its mean.

    Args:
        points: (..., M, 2).
        mean, inverse: from `fit_gaussian`.

    Returns:
        (..., M) in (0, 1].
    """
    d = points - mean[..., None, :]
    return (-torch.einsum("...mi,...ij,...mj->...m", d, inverse, d) / 2).exp()


def center_prior(centers: Tensor, boxes: Tensor) -> Tensor:
    """The Gaussian fitted to a whole box: mean at its center, variance side^2 / 12 along x and y.

    This prior is ours. It is 1 at the center and 0.05 in the corners, and does not depend on the
    teacher.

    Args:
        centers: (R, 2).
        boxes: (N, G, 4).

    Returns:
        (N, G, R) in [0, 1].
    """
    low, high = boxes.split(2, -1)
    (mx, my), (vx, vy) = (
        x[..., None].unbind(2) for x in ((low + high) / 2, (high - low).square() / 12 + RIDGE)
    )
    x, y = centers.unbind(-1)
    return (-((x - mx).square() / vx + (y - my).square() / vy) / 2).exp()
