"""Key predictive regions (PGD, arXiv 2203.05469): where a teacher predicts a box well.

Shapes: N images, G boxes of an image, R locations of all levels (anchors, where a cell has
several), K classes, M chosen locations of a box. Everything is in pixels of the padded input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from ..targets import Targets

__all__ = [
    "density",
    "fit_gaussian",
    "key_regions",
    "quality",
    "strictly_inside",
    "to_grids",
    "top_k",
]

CANDIDATES = ("box", "image")
WEIGHTINGS = ("gaussian", "quality", "box", "center")

# The variance of the jitter of the released code, which is uniform over 0.1 px.
RIDGE = 1 / 1200


@torch.no_grad()
def key_regions(
    logits: Tensor,
    boxes: Tensor,
    centers: Tensor,
    targets: Targets,
    *,
    xis: Sequence[float],
    k: int = 30,
    candidates: str = "box",
    weighting: str = "gaussian",
    padding: int = 0,
    pairs: int = 2**23,
) -> tuple[list[Tensor], Tensor]:
    """Foreground masks, one for each of `xis`, and the background mask.

    A box weighs its own locations, at most 1; where boxes overlap, the largest weight holds.
    Only locations strictly inside the box get one. Background is what lies in no box.

    Args:
        logits: (N, R, K) of the teacher; with K = 1 they hold for boxes of every class.
        boxes: (N, R, 4) that the teacher predicts.
        centers: (R, 2) x, y of the locations.
        targets: ground truth.
        xis: exponents of the IoU in `quality`.
        k: locations that a box chooses, over all levels together.
        candidates: what it chooses from: locations strictly inside the "box", or of the whole
            "image" (the released code), so that choices outside the box count in the fit only.
        weighting: the density of a "gaussian" fitted to the chosen locations, 1 at its mean;
            their "quality"; or, without choice and regardless of the teacher, 1 everywhere in the
            "box", or a prior around its "center", see `center_prior`.
        padding: locations beyond an image's size rounded up to a multiple of this are neither
            foreground nor background, nor candidates; 0: there are none.
        pairs: pairs of box and location looked at at once, which bounds memory.

    Returns:
        len(xis) masks (N, R) in [0, 1], and (N, R) of 0 and 1.
    """
    n, r = boxes.shape[:2]
    usable = boxes.new_ones(n, r, dtype=torch.bool)
    if padding:
        limits = -(-targets.sizes.flip(1) // padding) * padding
        usable = (centers < limits[:, None]).all(-1)
    foregrounds = [boxes.new_zeros(n, r) for _ in xis]
    covered = torch.zeros_like(usable)
    step = max(1, pairs // (n * r))
    for i in range(0, targets.boxes.shape[1], step):
        truth, valid, classes = (
            x[:, i : i + step] for x in (targets.boxes, targets.valid, targets.classes)
        )
        allowed = valid[..., None] & usable[:, None]
        inside = strictly_inside(centers, truth) & allowed
        covered |= inside.any(1)
        if weighting in ("box", "center"):
            weight = center_prior(centers, truth) if weighting == "center" else 1.0
            weight = (weight * inside).amax(1)
            foregrounds = [torch.maximum(x, weight) for x in foregrounds]
            continue
        score, iou = score_and_iou(logits, boxes, truth, classes)
        for foreground, xi in zip(foregrounds, xis, strict=True):
            best, rows = top_k(
                quality(score, iou, xi), inside if candidates == "box" else allowed, k
            )
            points, chosen = centers[rows], best >= 0
            if weighting == "gaussian":
                best = density(points, *fit_gaussian(points, chosen)).to(best.dtype)
            best = best * (chosen & inside.gather(-1, rows))
            foreground.scatter_reduce_(1, rows.flatten(1), best.flatten(1), "amax")
    if not targets.whole:
        usable = usable & targets.known(centers)
    return foregrounds, (usable & ~covered).to(boxes.dtype)


def to_grids(
    mask: Tensor, shapes: Mapping[str, tuple[int, int, int]], over_anchors: Callable
) -> dict[str, Tensor]:
    """Split (N, R) into level name -> (N, H, W).

    Args:
        shapes: level name -> H, W and anchors in a cell, in the order of R.
        over_anchors: what a cell gets of its anchors, such as `torch.amax`.
    """
    levels = mask.split([h * w * a for h, w, a in shapes.values()], 1)
    return {
        level: over_anchors(x.unflatten(1, shape), -1)
        for (level, shape), x in zip(shapes.items(), levels, strict=True)
    }


def strictly_inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """Which locations have all four sides of a box more than 1e-10 px away.

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
    """The teacher's score for each box's class, and the IoU of its prediction with the box.

    Args:
        logits: (N, R, K).
        boxes: (N, R, 4), predicted.
        truth, classes: (N, G, 4) and (N, G).

    Returns:
        (N, G, R) each, in [0, 1].
    """
    r, num_classes = logits.shape[1:]
    # Rows without a box have class -1; where K = 1, one logit is for all classes.
    index = classes.clamp(0, num_classes - 1)[..., None].expand(-1, -1, r)
    score = logits.transpose(1, 2).gather(1, index).sigmoid()
    iou = [pairwise_iou(Boxes(t), Boxes(b)) for t, b in zip(truth, boxes, strict=True)]
    return score, torch.stack(iou)


def quality(score: Tensor, iou: Tensor, xi: float) -> Tensor:
    """q = score^(1 - xi) * IoU^xi, in [0, 1]."""
    return score.pow(1 - xi) * iou.pow(xi)


def top_k(quality: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best `k` locations of each box, or as many as there are.

    Args:
        quality: (N, G, R), >= 0.
        allowed: (N, G, R) bool, what may be chosen.

    Returns:
        quality, -1 where nothing was left to choose, and rows in [0, R); both (N, G, M) with
        M = min(k, R).
    """
    return quality.masked_fill(~allowed, -1).topk(min(k, quality.shape[-1]), -1)


def fit_gaussian(points: Tensor, chosen: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood Gaussian over the chosen points.

    The released code jitters the points, so that equal or collinear ones have an area; `ridge`
    does the same without chance. In fp64: where the points lie on a diagonal line, fp32 could not
    tell the determinant from 0.

    Args:
        points: (..., M, 2).
        chosen: (..., M) bool; without any, the result is finite and means nothing.
        ridge: px^2, added to the variance along x and y.

    Returns:
        mean (..., 2) and inverse covariance (..., 2, 2), fp64.
    """
    share = chosen / chosen.sum(-1, keepdim=True).clamp(min=1).double()
    mean = (share[..., None] * points).sum(-2)
    x, y = (points - mean[..., None, :]).unbind(-1)
    xx, yy = (share * x * x).sum(-1) + ridge, (share * y * y).sum(-1) + ridge
    xy = (share * x * y).sum(-1)
    # The floor is the released code's; a ridge keeps the determinant far above it.
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
    """The Gaussian fitted to a whole box: its centre, and side^2 / 12 along x and y.

    Ours: 1 at the centre, 0.05 in the corners, the same for every teacher.

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
