"""Key predictive regions (PGD, arXiv 2203.05469): where a teacher predicts a box well.

Shapes: N images, G boxes of an image, R locations of all levels (anchors, where a cell has
several), K classes, M chosen locations of a box. Everything is in pixels of the padded input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou
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
    # Few locations lie inside a box, but a GPU would have to tell the host how many.
    few = candidates == "box" and weighting in ("gaussian", "quality") and not boxes.is_cuda
    step = max(1, pairs // (n * r))
    for i in range(0, targets.boxes.shape[1], step):
        truth, valid, classes = (
            x[:, i : i + step] for x in (targets.boxes, targets.valid, targets.classes)
        )
        if few:
            line, row = pairs_inside(centers, truth, valid, usable)
            covered.view(-1)[row] = True
            tables = compact(line, row, logits, boxes, truth, classes)
        else:
            allowed = valid[..., None] & usable[:, None]
            inside = strictly_inside(centers, truth) & allowed
            covered |= inside.any(1)
            if weighting in ("box", "center"):
                weight = center_prior(centers, truth) if weighting == "center" else 1.0
                weight = (weight * inside).amax(1)
                foregrounds = [torch.maximum(x, weight) for x in foregrounds]
                continue
            rows = torch.arange(n * r, device=boxes.device).view(n, 1, r).expand_as(inside)
            allowed = inside if candidates == "box" else allowed
            tables = [(*score_and_iou(logits, boxes, truth, classes), rows, allowed, inside)]
        for score, iou, rows, allowed, inside in tables:
            for foreground, xi in zip(foregrounds, xis, strict=True):
                best, columns = top_k(quality(score, iou, xi), allowed, k)
                at, chosen = rows.gather(-1, columns), best >= 0
                if weighting == "gaussian":
                    points = centers[at % r]
                    best = density(points, *fit_gaussian(points, chosen)).to(best.dtype)
                best = best * (chosen & inside.gather(-1, columns))
                foreground.view(-1).scatter_reduce_(0, at.flatten(), best.flatten(), "amax")
    if not targets.complete:
        usable = usable & targets.known(centers)
    return foregrounds, (usable & ~covered).to(boxes.dtype)


def pairs_inside(
    centers: Tensor, boxes: Tensor, valid: Tensor, usable: Tensor, block: int = 32
) -> tuple[Tensor, Tensor]:
    """Which usable locations lie strictly inside which boxes: a list, as long as the data make it.

    Locations that follow each other are near each other. So first come the blocks of them whose
    extent a box overlaps, then what is in these.

    Args:
        centers: (R, 2).
        boxes, valid: (N, G, 4) and (N, G) bool.
        usable: (N, R) bool.
        block: locations in a block.

    Returns:
        for each of P pairs, index of the box into (N * G), ascending, and of the location into
        (N * R).
    """
    n, r = usable.shape
    fill = (0, -r % block)
    # What fills the last block is infinitely far away.
    blocks = F.pad(centers.T, fill, value=torch.inf).view(2, -1, block)
    usable = F.pad(usable, fill).view(n, -1, block)
    low, high = blocks.amin(2), blocks.amax(2)
    x0, y0, x1, y1 = boxes[..., None].unbind(2)
    near = (high[0] > x0) & (high[1] > y0) & (low[0] < x1) & (low[1] < y1) & valid[..., None]
    image, box, which = near.nonzero().unbind(1)
    points = blocks[:, which, None].movedim(0, -1)
    inside = strictly_inside(points, boxes[image, box][:, None])[:, 0] & usable[image, which]
    near, offset = inside.nonzero().unbind(1)
    line, row = image * boxes.shape[1] + box, image * r + which * block
    return line[near], row[near] + offset


def compact(
    line: Tensor, row: Tensor, logits: Tensor, boxes: Tensor, truth: Tensor, classes: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Tables with a line for each box, of boxes around about as many locations.

    Args:
        line, row: from `pairs_inside`.
        logits, boxes, truth, classes: see `score_and_iou`.

    Yields:
        (B, W) each: score; IoU; index of the location into (N * R); and twice what is inside the
        box and may be chosen, all but the ends of lines shorter than W.
    """
    num_classes = logits.shape[2]
    index = row * num_classes + classes.clamp(0, num_classes - 1).take(line)
    score = logits.take(index).sigmoid()
    found, truth = boxes.flatten(0, 1)[row], truth.flatten(0, 1)[line]
    iou = matched_pairwise_iou(Boxes(truth), Boxes(found))
    counts = torch.bincount(line)
    starts = counts.cumsum(0) - counts
    # Powers of two, so that more than half of a wide table is in use.
    widths = counts.clamp(min=32).double().log2().ceil().exp2().long()
    for width in widths.unique().tolist():
        lines = (widths == width).nonzero()
        inside = torch.arange(width) < counts[lines]
        at = (starts[lines] + torch.arange(width)).clamp(max=len(row) - 1)
        yield score.take(at), iou.take(at), row.take(at), inside, inside


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
