"""Functions that the losses of the dense detectors share.

All tensors keep a fixed shape: positives are selected by weights of 0 and 1 instead of by indexing
with a mask. A training step therefore never makes the host wait for the GPU.

Shapes: N images, R locations, G boxes per image, K classes. Boxes are x1y1x2y2. Leading dimensions
written `...` broadcast.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from d2kd.targets import Targets

__all__ = [
    "gather_targets",
    "giou",
    "iou",
    "ltrb_distances",
    "num_positives",
    "one_hot",
    "reduce_mean",
]


def reduce_mean(x: Tensor) -> Tensor:
    """Average a float tensor over all processes, without a gradient.

    Losses divide a local sum by the mean over processes of a normalizer, such as the number of
    positives. DDP averages gradients over processes, so that the result is the global sum divided
    by the global normalizer. With one process, the values stay as they are.
    """
    x = x.detach()
    if comm.get_world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / comm.get_world_size()


def num_positives(matched: Tensor) -> Tensor:
    """Count positives as the released ATSS, GFL and DDOD do: an image without any counts as one.

    Args:
        matched: (N, R) index of the box that a location is positive for, or -1.

    Returns:
        scalar, at least 1; the mean over processes of the batch's count.
    """
    counts = (matched >= 0).sum(1).clamp(min=1)
    return reduce_mean(counts.sum().float()).clamp(min=1)


def gather_targets(targets: Targets, matched: Tensor) -> tuple[Tensor, Tensor]:
    """Look up the box and the class that each location is positive for.

    Args:
        targets: ground truth; G may be 0.
        matched: (N, R) index of a box in [0, G), or -1.

    Returns:
        (N, R, 4) boxes, zero where a location is not positive; (N, R) classes, -1 there.
    """
    # A row is appended that stands for "no box". Locations with index -1 read that row.
    boxes, classes = F.pad(targets.boxes, (0, 0, 0, 1)), F.pad(targets.classes, (0, 1), value=-1)
    index = torch.where(matched >= 0, matched, classes.shape[1] - 1)
    return boxes.gather(1, index[..., None].expand(-1, -1, 4)), classes.gather(1, index)


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """Encode classes as one-hot vectors; unlike `F.one_hot`, -1 ("no class") gives zeros.

    Args:
        classes: (...) long, in [0, K), or -1.
        num_classes: K.

    Returns:
        (..., K) float.

    Raises:
        RuntimeError: a class is K or more. On a GPU it is a device-side assertion.
    """
    # "No class" is written to an extra column K, which is cut off again. A class that is too large
    # is sent to column K + 1, which does not exist, so that scatter_ reports it.
    index = torch.where(classes >= num_classes, num_classes + 1, classes)
    index = torch.where(classes < 0, num_classes, index)
    columns = torch.zeros(*classes.shape, num_classes + 1, device=classes.device)
    return columns.scatter_(-1, index[..., None], 1)[..., :-1]


# torchvision's and fvcore's IoU losses index with masks or assert on values, and both make the host
# wait for the GPU. The functions below compute IoU and GIoU without that.


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union areas, (...), of boxes (..., 4)."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = _area(sides.clamp(min=0))
    area_a, area_b = (_area(x[..., 2:] - x[..., :2]) for x in (a, b))
    return intersection, area_a + area_b - intersection


def _area(sides: Tensor) -> Tensor:
    """(..., 2) width and height to (...) area."""
    return sides[..., 0] * sides[..., 1]  # the backward pass of prod() makes the host wait


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), elementwise with broadcasting.

    This is Detectron2's `matched_pairwise_iou` for tensors. To compare all boxes a (N, 4) with all
    boxes b (M, 4), call `iou(a[:, None], b)`.

    Returns:
        (...) in [0, 1]. Boxes without area give 0, because the union is at least 1e-6.
    """
    intersection, union = _intersection_and_union(a, b)
    return intersection / union.clamp(min=1e-6)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of boxes (..., 4), elementwise with broadcasting.

    Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.

    Returns:
        (...) in (-1, 1]. Areas in denominators are at least 1e-7.
    """
    intersection, union = _intersection_and_union(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull_area, union = _area(hull).clamp(min=1e-7), union.clamp(min=1e-7)
    return intersection / union - (hull_area - union) / hull_area


def ltrb_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Signed distances of points to the sides of boxes.

    Args:
        points: (..., 2) x, y.
        boxes: (..., 4).

    Returns:
        (..., 4) distances to the left, top, right and bottom side; all are positive if the point
        lies inside the box.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)
