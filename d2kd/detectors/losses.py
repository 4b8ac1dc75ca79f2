"""What the losses of dense detectors share. Everything has a fixed shape: masks are weights.

Shapes: N images, R locations, G boxes, K classes. Boxes are x1y1x2y2; a leading `...` broadcasts.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from d2kd.targets import Targets

__all__ = ["distances", "giou", "iou", "one_hot", "positive_count", "rank_mean", "truth_at"]


def rank_mean(x: Tensor) -> Tensor:
    """Mean of a float tensor over all processes, without gradient; one process: the same values.

    DDP averages gradients over processes. A sum divided by the mean of the local normalisers is
    then, over all processes, the global sum divided by the global normaliser.
    """
    x = x.detach()
    if comm.get_world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / comm.get_world_size()


def positive_count(matched: Tensor) -> Tensor:
    """Number of positives as ATSS, GFL and DDOD count them: an image without any counts as one.

    Args:
        matched: (N, R) index of the box for which a location is positive, else -1.

    Returns:
        scalar, at least 1, mean over processes.
    """
    counts = (matched >= 0).sum(1).clamp(min=1)
    return rank_mean(counts.sum().float()).clamp(min=1)


def truth_at(targets: Targets, matched: Tensor) -> tuple[Tensor, Tensor]:
    """Box and class of what each location is positive for.

    Args:
        targets: ground truth; G may be 0.
        matched: (N, R) index of a box in [0, G), else -1.

    Returns:
        (N, R, 4) boxes, zero where a location is not positive; (N, R) classes, -1 there.
    """
    # One more row, which stands for no box, is what an index of -1 takes.
    boxes, classes = F.pad(targets.boxes, (0, 0, 0, 1)), F.pad(targets.classes, (0, 1), value=-1)
    index = torch.where(matched >= 0, matched, classes.shape[1] - 1)
    return boxes.gather(1, index[..., None].expand(-1, -1, 4)), classes.gather(1, index)


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """(...,) classes, -1 for none, to (..., K) float: 1 at the class.

    Raises:
        RuntimeError: a class of K or more (on a GPU a device-side assertion).
    """
    # "None" is column K, which is cut off. A class too many has no column at all.
    index = torch.where(classes >= num_classes, num_classes + 1, classes)
    index = torch.where(classes < 0, num_classes, index)
    columns = torch.zeros(*classes.shape, num_classes + 1, device=classes.device)
    return columns.scatter_(-1, index[..., None], 1)[..., :-1]


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union, (...,), of boxes (..., 4)."""
    # torchvision's and fvcore's losses index with masks or assert on values, which makes the host
    # wait for the device.
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = _area(sides.clamp(min=0))
    area_a, area_b = (_area(x[..., 2:] - x[..., :2]) for x in (a, b))
    return intersection, area_a + area_b - intersection


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]  # the backward pass of prod() makes the host wait


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(...,) intersection over union of boxes (..., 4), in [0, 1]; the union is at least 1e-6."""
    intersection, union = _areas(a, b)
    return intersection / union.clamp(min=1e-6)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """(...,) generalised IoU of boxes (..., 4), in (-1, 1]; areas are at least 1e-7.

    Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.
    """
    intersection, union = _areas(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull, floored = _area(hull).clamp(min=1e-7), union.clamp(min=1e-7)
    return intersection / floored - (hull - floored) / hull


def distances(points: Tensor, boxes: Tensor) -> Tensor:
    """(..., 4) signed distances of points (..., 2) to the left, top, right and bottom sides of
    boxes (..., 4); positive inside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)
