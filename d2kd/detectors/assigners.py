"""Label assignment: choose the locations that are positive for each ground-truth box.

The steps of ATSS are separate functions, because DDOD and AutoAssign use some of them.

Shapes: N images, L levels, R locations of all levels, G boxes per image (padded; may be 0),
S candidates per box. Boxes are x1y1x2y2 in pixels of the padded input.

Nothing here loops over images or boxes, and nothing has a gradient. The largest tensor holds one
float per pair of box and location of one level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from d2kd.targets import Targets

from .losses import iou, ltrb_distances
from .structures import Locations

__all__ = [
    "Candidates",
    "assign_atss",
    "atss_threshold",
    "in_box_mask",
    "nearest_candidates",
    "resolve_conflicts",
]


class Candidates(NamedTuple):
    """Locations that may become positive for a box.

    Attributes:
        indices: (N, G, S) long, locations in [0, R).
        valid: (N, G, S) bool. False marks entries that only fill the tensor up to S.
    """

    indices: Tensor
    valid: Tensor


@torch.no_grad()
def nearest_candidates(
    locations: Locations, targets: Targets, in_image: Tensor, topk: int = 9
) -> Candidates:
    """Choose, at each level, the `topk` locations whose centers are nearest to the box's center.

    ATSS, arXiv 1912.02424, algorithm 1: the candidates C_g.

    A level with fewer than `topk` locations contributes all of its locations. Several locations can
    be equally far from a box's center, for example where the center lies on a symmetry axis of the
    grid. `torch.topk` then picks some of them, and which ones depends on the device.

    Args:
        locations: anchors and levels.
        targets: ground truth.
        in_image: (N, R) bool, the locations that may be chosen.
        topk: candidates of a box at each level.

    Returns:
        candidates; S is the sum over levels of min(topk, locations of the level).
    """
    indices, valid, start = [], [], 0
    box_centers = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    levels = (locations.centers.split(locations.counts), in_image.split(locations.counts, 1))
    for points, allowed in zip(*levels, strict=True):
        # Squared distances, (N, G, locations of the level); their order is all that matters.
        distance = (box_centers[..., :1] - points[:, 0]).square()
        distance += (box_centers[..., 1:] - points[:, 1]).square()
        distance.masked_fill_(~allowed[:, None], torch.inf)
        value, index = distance.topk(min(topk, len(points)), largest=False)
        indices.append(index + start)
        valid.append(value.isfinite() & targets.valid[..., None])
        start += len(points)
    return Candidates(torch.cat(indices, -1), torch.cat(valid, -1))


@torch.no_grad()
def in_box_mask(
    locations: Locations, boxes: Tensor, indices: Tensor, margin: float = 0.01
) -> Tensor:
    """Test whether the centers of candidate locations lie inside their box.

    Args:
        locations: anchors and levels.
        boxes: (N, G, 4).
        indices: (N, G, S) long, the candidates of each box.
        margin: a center counts as inside if it is more than this many pixels away from every side.

    Returns:
        (N, G, S) bool.
    """
    return ltrb_distances(locations.centers[indices], boxes[:, :, None]).amin(-1) > margin


@torch.no_grad()
def atss_threshold(quality: Tensor, valid: Tensor) -> Tensor:
    """Compute the threshold of each box: mean plus standard deviation over its candidates.

    ATSS, arXiv 1912.02424, algorithm 1: t_g = m_g + v_g. The standard deviation is the unbiased
    one (divided by n - 1), as in the released code. It is 0 for a single candidate.

    Args:
        quality: (N, G, S), at least 0; in ATSS the IoU of anchor and box.
        valid: (N, G, S) bool, see `Candidates`.

    Returns:
        (N, G) threshold; 0 for a box without candidates.
    """
    count = valid.sum(-1)
    mean = torch.where(valid, quality, 0).sum(-1) / count.clamp(min=1)
    squares = torch.where(valid, (quality - mean[..., None]).square(), 0).sum(-1)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def resolve_conflicts(
    indices: Tensor, quality: Tensor, positive: Tensor, num_locations: int
) -> Tensor:
    """Give a location that is positive for several boxes to the box with the largest quality.

    Args:
        indices: (N, G, S) long, the candidates of each box.
        quality: (N, G, S), at least 0. If qualities are equal, the box with the lowest index wins.
        positive: (N, G, S) bool, the candidates that are positive for their box.
        num_locations: R.

    Returns:
        (N, R) long, index in [0, G) of the box that a location is positive for, or -1.
    """
    num_images, num_boxes, _ = indices.shape
    location = indices.flatten(1)
    claim = torch.where(positive, quality, -1).flatten(1)
    best = claim.new_full((num_images, num_locations), -1)
    best = best.scatter_reduce(1, location, claim, "amax")
    wins = (claim >= 0) & (claim == best.gather(1, location))
    box = torch.arange(num_boxes, device=indices.device)[:, None].expand_as(indices).flatten(1)
    matched = indices.new_full((num_images, num_locations), num_boxes)
    matched = matched.scatter_reduce(1, location, torch.where(wins, box, num_boxes), "amin")
    return torch.where(matched < num_boxes, matched, -1)


@torch.no_grad()
def assign_atss(
    locations: Locations,
    targets: Targets,
    in_image: Tensor,
    topk: int = 9,
    quality: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Assign boxes by Adaptive Training Sample Selection (ATSS, arXiv 1912.02424, algorithm 1).

    A candidate (`nearest_candidates`) is positive if its quality reaches the box's threshold
    (`atss_threshold`) and its center lies inside the box (`in_box_mask`).

    Args:
        locations: anchors and levels.
        targets: ground truth.
        in_image: (N, R) bool, the locations that may become positive.
        topk: candidates of a box at each level.
        quality: maps locations (N, G, S) to their quality (N, G, S), at least 0. By default the
            quality is the IoU of the anchor and the box, as in the paper.

    Returns:
        (N, R) long, index in [0, G) of the box that a location is positive for, or -1.
    """
    indices, valid = nearest_candidates(locations, targets, in_image, topk)
    if quality is None:
        value = iou(locations.anchors[indices], targets.boxes[:, :, None])
    else:
        value = quality(indices)
    positive = valid & (value >= atss_threshold(value, valid)[..., None])
    positive &= in_box_mask(locations, targets.boxes, indices)
    return resolve_conflicts(indices, value, positive, len(locations.anchors))
