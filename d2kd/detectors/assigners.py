"""Which locations are positive for which box.

Shapes: N images, L levels, R locations, G boxes (padded; may be 0), S candidates of a box. Nothing
here loops over images or boxes or has a gradient; only candidates carry more than one float per
pair of box and location.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from d2kd.targets import Targets

from .base import Locations
from .losses import distances, iou

__all__ = ["Candidates", "atss", "contains", "nearest", "settle", "spread"]


class Candidates(NamedTuple):
    """Locations that may become positive for a box.

    Attributes:
        index: (N, G, S) long, locations in [0, R).
        valid: (N, G, S) bool; the others only fill up.
    """

    index: Tensor
    valid: Tensor


@torch.no_grad()
def nearest(locations: Locations, targets: Targets, inside: Tensor, topk: int = 9) -> Candidates:
    """At each level, the `topk` locations whose centres are nearest to a box's centre.

    A level with fewer locations gives all it has. Of locations at equal distance on the boundary,
    common where a box's centre lies on a symmetry axis of the grid, `torch.topk` picks some; which
    ones depends on the device.

    Args:
        inside: (N, R) bool, the locations that may be chosen.
    """
    index, valid, start = [], [], 0
    middle = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    levels = (locations.centers.split(locations.counts), inside.split(locations.counts, 1))
    for points, here in zip(*levels, strict=True):
        distance = (middle[..., :1] - points[:, 0]).square()  # (N, G, locations of the level)
        distance += (middle[..., 1:] - points[:, 1]).square()
        distance.masked_fill_(~here[:, None], torch.inf)
        value, best = distance.topk(min(topk, len(points)), largest=False)
        index.append(best + start)
        valid.append(value.isfinite() & targets.valid[..., None])
        start += len(points)
    return Candidates(torch.cat(index, -1), torch.cat(valid, -1))


@torch.no_grad()
def contains(locations: Locations, boxes: Tensor, index: Tensor, margin: float = 0.01) -> Tensor:
    """Whether boxes (N, G, 4) contain the centres of locations `index` (N, G, S), with more than
    `margin` pixels to each side; (N, G, S) bool."""
    return distances(locations.centers[index], boxes[:, :, None]).amin(-1) > margin


@torch.no_grad()
def spread(quality: Tensor, valid: Tensor) -> Tensor:
    """ATSS's threshold: mean plus unbiased standard deviation over the valid candidates.

    Args:
        quality: (N, G, S), at least 0.
        valid: (N, G, S) bool.

    Returns:
        (N, G); a single candidate has a deviation of 0.
    """
    count = valid.sum(-1)
    mean = torch.where(valid, quality, 0).sum(-1) / count.clamp(min=1)
    squares = torch.where(valid, (quality - mean[..., None]).square(), 0).sum(-1)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def settle(index: Tensor, quality: Tensor, positive: Tensor, num_locations: int) -> Tensor:
    """Give a location that is positive for several boxes to the one with the largest quality.

    Args:
        index: (N, G, S) locations.
        quality: (N, G, S), at least 0. Of equal ones, the box with the lowest index gets it.
        positive: (N, G, S) bool.
        num_locations: R.

    Returns:
        (N, R) long, index of the box in [0, G), or -1.
    """
    n, g, _ = index.shape
    place = index.flatten(1)
    claim = torch.where(positive, quality, -1).flatten(1)
    best = claim.new_full((n, num_locations), -1).scatter_reduce(1, place, claim, "amax")
    wins = (claim >= 0) & (claim == best.gather(1, place))
    box = torch.arange(g, device=index.device)[:, None].expand_as(index).flatten(1)
    first = index.new_full((n, num_locations), g)
    first = first.scatter_reduce(1, place, torch.where(wins, box, g), "amin")
    return torch.where(first < g, first, -1)


@torch.no_grad()
def atss(
    locations: Locations,
    targets: Targets,
    inside: Tensor,
    topk: int = 9,
    quality: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Adaptive Training Sample Selection (ATSS, arXiv 1912.02424, algorithm 1).

    A box's candidates are those of `nearest`; positive are those whose quality reaches `spread`
    and whose centre the box contains by more than 0.01 pixels.

    Args:
        locations: anchors and levels.
        targets: ground truth.
        inside: (N, R) bool, the locations that may become positive.
        topk: candidates at each level.
        quality: (N, G, S) locations -> (N, G, S) quality, at least 0; default: the IoU of the
            anchor and the box.

    Returns:
        (N, R) long, index of the box in [0, G) for which a location is positive, else -1.
    """
    index, valid = nearest(locations, targets, inside, topk)
    if quality is None:
        value = iou(locations.anchors[index], targets.boxes[:, :, None])
    else:
        value = quality(index)
    positive = valid & (value >= spread(value, valid)[..., None])
    positive &= contains(locations, targets.boxes, index)
    return settle(index, value, positive, len(locations.anchors))
