"""Key predictive regions (PGD, arXiv 2203.05469): where a teacher predicts a box well.

Shapes: N images, G boxes of an image, R locations of all levels (anchors, where a cell has
several), K classes, M chosen locations of a box. All coordinates are in pixels of the padded input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

from ...targets import Targets
from .location_weights import (
    center_prior,
    density,
    fit_gaussian,
    quality,
    score_and_iou,
    strictly_inside,
    top_k,
)

__all__ = ["fitted_gaussians", "key_regions", "pairs_inside", "to_grids"]

CANDIDATES = ("box", "image")
WEIGHTINGS = ("gaussian", "quality", "box", "center")


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
    """Make one foreground mask for each of `xis`, and one background mask.

    A box gives weights of at most 1 to its own locations. Where boxes overlap, a location keeps the
    largest weight. Only locations strictly inside a box can get a weight from it. Locations that
    lie in no box are background.

    Args:
        logits: (N, R, K) class logits of the teacher. With K = 1, they hold for boxes of every
            class.
        boxes: (N, R, 4), the boxes that the teacher predicts, x1y1x2y2 in pixels.
        centers: (R, 2), x and y of the locations in pixels.
        targets: ground truth.
        xis: exponents of the IoU in `quality`, each in [0, 1].
        k: number of locations that each box chooses, over all levels together.
        candidates: the locations from which a box chooses: all strictly inside the "box", or all of
            the "image", as in the released code. With "image", chosen locations outside the box
            take part in the Gaussian's fit and get no weight.
        weighting: the weights of a box's locations. "gaussian": the density of a Gaussian that is
            fitted to the chosen locations, 1 at its mean. "quality": the quality of the chosen
            locations. The other two choose nothing and do not depend on the teacher. "box": 1
            everywhere in the box. "center": a prior around the box's center, see `center_prior`.
        padding: locations beyond an image's size, rounded up to a multiple of this number of
            pixels, are neither foreground nor background, and cannot be chosen. 0 keeps all.
        pairs: how many pairs of box and location to look at at a time. This bounds the memory.

    Returns:
        len(xis) foreground masks (N, R) in [0, 1]; and the background mask (N, R) of 0 and 1.
    """
    n, r = boxes.shape[:2]
    usable = _usable(boxes, centers, targets, padding)
    foregrounds = [boxes.new_zeros(n, r) for _ in xis]
    covered = torch.zeros_like(usable)
    scene = Scene(logits, boxes, centers, usable)
    step = max(1, pairs // (n * r))
    for i in range(0, targets.boxes.shape[1], step):
        truth = Truth(
            *(x[:, i : i + step] for x in (targets.boxes, targets.valid, targets.classes))
        )
        if weighting in ("box", "center"):
            covered |= _weigh_whole_boxes(foregrounds, scene, truth, weighting)
        # Few locations lie inside a box. Listing them makes a GPU's host wait for their number.
        elif candidates == "box" and not boxes.is_cuda:
            covered |= _choose_from_list(foregrounds, scene, truth, xis, k, weighting)
        else:
            covered |= _choose_from_table(foregrounds, scene, truth, xis, k, weighting, candidates)
    if not targets.complete:
        usable = usable & targets.known(centers)
    return foregrounds, (usable & ~covered).to(boxes.dtype)


@torch.no_grad()
def fitted_gaussians(
    logits: Tensor,
    boxes: Tensor,
    centers: Tensor,
    targets: Targets,
    *,
    xis: Sequence[float],
    k: int,
    candidates: str,
    padding: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """The Gaussians of `key_regions` with the weighting "gaussian", for pictures.

    Args:
        logits, boxes, centers, targets, xis, k, candidates, padding: see `key_regions`.

    Returns:
        for each of `xis`, means (N, G, 2) in pixels and covariances (N, G, 2, 2) in px^2, fp64.
        Both are NaN for a row without a box, and for a box that chooses no location.
    """
    usable = _usable(boxes, centers, targets, padding)
    truth = Truth(targets.boxes, targets.valid, targets.classes)
    allowed = _allowed(Scene(logits, boxes, centers, usable), truth)
    if candidates == "box":
        allowed = allowed & strictly_inside(centers, targets.boxes)
    score, iou = score_and_iou(logits, boxes, targets.boxes, targets.classes)
    gaussians = []
    for xi in xis:
        weight, columns = top_k(quality(score, iou, xi), allowed, k)
        chosen = weight >= 0
        mean, inverse = fit_gaussian(centers[columns], chosen)
        none = ~chosen.any(-1, keepdim=True)
        gaussians.append(
            (
                mean.masked_fill(none, torch.nan),
                torch.linalg.inv(inverse).masked_fill(none[..., None], torch.nan),
            )
        )
    return gaussians


def _usable(boxes: Tensor, centers: Tensor, targets: Targets, padding: int) -> Tensor:
    """(N, R) bool, the locations that may be chosen; `padding` as in `key_regions`."""
    if not padding:
        return boxes.new_ones(boxes.shape[:2], dtype=torch.bool)
    limits = -(-targets.sizes.flip(1) // padding) * padding
    return (centers < limits[:, None]).all(-1)


class Scene(NamedTuple):
    """The locations of a batch and what the teacher predicts there.

    Attributes:
        logits: (N, R, K).
        boxes: (N, R, 4), predicted.
        centers: (R, 2).
        usable: (N, R) bool, the locations that may be chosen.
    """

    logits: Tensor
    boxes: Tensor
    centers: Tensor
    usable: Tensor


class Truth(NamedTuple):
    """Some of the true boxes of a batch: boxes (N, G, 4), valid (N, G) bool, classes (N, G)."""

    boxes: Tensor
    valid: Tensor
    classes: Tensor


def _weigh_whole_boxes(
    foregrounds: list[Tensor], scene: Scene, truth: Truth, weighting: str
) -> Tensor:
    """Weigh all locations of each box, without a choice and regardless of the teacher.

    Args:
        foregrounds: (N, R) masks, updated in place.
        weighting: "box" or "center", see `key_regions`.

    Returns:
        (N, R) bool, the locations that lie in a box.
    """
    inside = strictly_inside(scene.centers, truth.boxes) & _allowed(scene, truth)
    weight = inside.to(scene.boxes.dtype)
    if weighting == "center":
        weight = weight * center_prior(scene.centers, truth.boxes)
    weight = weight.amax(1)
    for foreground in foregrounds:
        torch.maximum(foreground, weight, out=foreground)
    return inside.any(1)


def _choose_from_list(
    foregrounds: list[Tensor],
    scene: Scene,
    truth: Truth,
    xis: Sequence[float],
    k: int,
    weighting: str,
) -> Tensor:
    """Let boxes choose among the locations inside them, which are listed first.

    The list is as long as the data make it. This is the fast way on a CPU: a box meets only the
    locations inside it.

    Args and returns: see `_choose_from_table`; the candidates are always those inside the box.
    """
    covered = torch.zeros_like(scene.usable)
    box_index, location_index = pairs_inside(scene.centers, truth.boxes, truth.valid, scene.usable)
    covered.view(-1)[location_index] = True
    for score, iou, locations, inside in compact(
        box_index, location_index, scene.logits, scene.boxes, truth.boxes, truth.classes
    ):
        _weigh_chosen(
            foregrounds, scene.centers, score, iou, locations, inside, inside, xis, k, weighting
        )
    return covered


def _choose_from_table(
    foregrounds: list[Tensor],
    scene: Scene,
    truth: Truth,
    xis: Sequence[float],
    k: int,
    weighting: str,
    candidates: str,
) -> Tensor:
    """Let boxes choose from a table of all boxes and all locations.

    The table's shape does not depend on the data, so that a GPU's host never waits.

    Args:
        foregrounds: (N, R) masks, one for each of `xis`, updated in place.
        xis, k, weighting, candidates: see `key_regions`.

    Returns:
        (N, R) bool, the locations that lie in a box.
    """
    n, r = scene.usable.shape
    allowed = _allowed(scene, truth)
    inside = strictly_inside(scene.centers, truth.boxes) & allowed
    locations = torch.arange(n * r, device=scene.boxes.device).view(n, 1, r).expand_as(inside)
    score, iou = score_and_iou(scene.logits, scene.boxes, truth.boxes, truth.classes)
    allowed = inside if candidates == "box" else allowed
    _weigh_chosen(
        foregrounds, scene.centers, score, iou, locations, allowed, inside, xis, k, weighting
    )
    return inside.any(1)


def _allowed(scene: Scene, truth: Truth) -> Tensor:
    """(N, G, R) bool, the pairs of a box that exists and a usable location."""
    return truth.valid[..., None] & scene.usable[:, None]


def _weigh_chosen(
    foregrounds: list[Tensor],
    centers: Tensor,
    score: Tensor,
    iou: Tensor,
    locations: Tensor,
    allowed: Tensor,
    inside: Tensor,
    xis: Sequence[float],
    k: int,
    weighting: str,
) -> None:
    """Choose the best locations of each box and raise the foreground masks there.

    Args:
        foregrounds: (N, R) masks, one for each of `xis`, updated in place.
        score, iou: (..., W) in [0, 1]; each line of W candidates belongs to one box.
        locations: (..., W) long, index of each candidate into (N * R).
        allowed: (..., W) bool, the candidates that may be chosen.
        inside: (..., W) bool, the candidates strictly inside the box.
        xis, k, weighting: see `key_regions`.
    """
    for foreground, xi in zip(foregrounds, xis, strict=True):
        weight, columns = top_k(quality(score, iou, xi), allowed, k)
        chosen, index = weight >= 0, locations.gather(-1, columns)
        if weighting == "gaussian":
            points = centers[index % len(centers)]
            weight = density(points, *fit_gaussian(points, chosen)).to(weight.dtype)
        weight = weight * (chosen & inside.gather(-1, columns))
        foreground.view(-1).scatter_reduce_(0, index.flatten(), weight.flatten(), "amax")


def pairs_inside(
    centers: Tensor, boxes: Tensor, valid: Tensor, usable: Tensor, block: int = 32
) -> tuple[Tensor, Tensor]:
    """List which usable locations lie strictly inside which boxes.

    Locations that follow each other in R are near each other. So the first step finds the blocks of
    locations whose extent a box overlaps, and the second step looks at the locations of these.

    Args:
        centers: (R, 2).
        boxes, valid: (N, G, 4) and (N, G) bool.
        usable: (N, R) bool.
        block: number of locations in a block.

    Returns:
        for each of P pairs, the index of the box into (N * G), ascending, and the index of the
        location into (N * R). P depends on the data.
    """
    n, r = usable.shape
    fill = (0, -r % block)
    # What fills up the last block is infinitely far away.
    blocks = F.pad(centers.T, fill, value=torch.inf).view(2, -1, block)
    usable = F.pad(usable, fill).view(n, -1, block)
    low, high = blocks.amin(2), blocks.amax(2)
    x0, y0, x1, y1 = boxes[..., None].unbind(2)
    near = (high[0] > x0) & (high[1] > y0) & (low[0] < x1) & (low[1] < y1) & valid[..., None]
    image, box, which = near.nonzero().unbind(1)
    points = blocks[:, which, None].movedim(0, -1)
    inside = strictly_inside(points, boxes[image, box][:, None])[:, 0] & usable[image, which]
    near, offset = inside.nonzero().unbind(1)
    box_index, location_index = image * boxes.shape[1] + box, image * r + which * block
    return box_index[near], location_index[near] + offset


def compact(
    box_index: Tensor,
    location_index: Tensor,
    logits: Tensor,
    boxes: Tensor,
    truth: Tensor,
    classes: Tensor,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Turn the list of pairs into tables with one line for each box.

    Boxes with a similar number of locations share a table, so that little of it is empty.

    Args:
        box_index, location_index: from `pairs_inside`.
        logits, boxes, truth, classes: see `score_and_iou`.

    Yields:
        four tensors (B, W): score; IoU; index of the location into (N * R); and bool, whether the
        entry is a location inside the box. It is False only where a line has fewer than W.
    """
    num_classes = logits.shape[2]
    index = location_index * num_classes + classes.clamp(0, num_classes - 1).take(box_index)
    score = logits.take(index).sigmoid()
    predicted, true = boxes.flatten(0, 1)[location_index], truth.flatten(0, 1)[box_index]
    iou = matched_pairwise_iou(Boxes(true), Boxes(predicted))
    counts = torch.bincount(box_index)
    starts = counts.cumsum(0) - counts
    # Powers of two, so that more than half of a wide table is in use.
    widths = counts.clamp(min=32).double().log2().ceil().exp2().long()
    for width in widths.unique().tolist():
        lines = (widths == width).nonzero()
        inside = torch.arange(width) < counts[lines]
        entries = (starts[lines] + torch.arange(width)).clamp(max=len(location_index) - 1)
        yield score.take(entries), iou.take(entries), location_index.take(entries), inside


def to_grids(
    mask: Tensor, shapes: Mapping[str, tuple[int, int, int]], over_anchors: Callable
) -> dict[str, Tensor]:
    """Split a mask (N, R) into level name -> (N, H, W).

    Args:
        mask: (N, R).
        shapes: level name -> H, W and the number of anchors in a cell, in the order of R.
        over_anchors: reduces the values of a cell's anchors to one, such as `torch.amax`.
    """
    levels = mask.split([h * w * a for h, w, a in shapes.values()], 1)
    return {
        level: over_anchors(x.unflatten(1, shape), -1)
        for (level, shape), x in zip(shapes.items(), levels, strict=True)
    }
