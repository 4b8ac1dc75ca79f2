"""Take the gradient from predictions where the labels say nothing.

Shapes: N images, R anchors, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BACKGROUND_LOGIT", "covered", "mask_scores", "scale_gradient", "weight_of_matched"]

# A logit whose sigmoid is 2e-9: as background it has practically no loss and no gradient.
BACKGROUND_LOGIT = -20.0
# An anchor or a proposal is ignored if at least this share of its area is inside a region to ignore
# (LabelMatch, arXiv 2206.06608, released code). This includes every box that would be a positive
# for the region at IoU 0.5.
_COVERED_SHARE = 0.5


def mask_scores(scores: Tensor, annotated: Tensor, sigmoid: bool) -> Tensor:
    """Mask the scores of classes that were not annotated in the proposal's image.

    With sigmoids, their scores become the background logit and get no gradient. In a softmax,
    "background" then means "background or a class that was not annotated", as in MiB (arXiv
    2002.00718): its logit becomes the log-sum-exp of its own logit and theirs.

    Args:
        scores: (P, K + 1), class logits of P proposals; the last one is the background's.
        annotated: (P, K) bool.
        sigmoid: whether the losses are sigmoids.
    """
    annotated = F.pad(annotated, (0, 1), value=True)  # the background is always known
    if sigmoid:
        return torch.where(annotated, scores, BACKGROUND_LOGIT)
    low = torch.finfo(scores.dtype).min / 2
    unknown = torch.where(annotated, low, scores)
    unknown = torch.cat([unknown[:, :-1], scores[:, -1:]], 1).logsumexp(1, keepdim=True)
    return torch.cat([torch.where(annotated, scores, low)[:, :-1], unknown], 1)


def covered(
    boxes: Tensor, regions: Tensor, share: float = _COVERED_SHARE, chunk: int = 32
) -> Tensor:
    """Which boxes have at least a share of their area inside one region.

    Args:
        boxes: (R, 4) x1y1x2y2.
        regions: (N, I, 4); rows without a region are zero.
        share: in (0, 1].
        chunk: number of regions that are compared with all boxes at once, which bounds memory.

    Returns:
        (N, R) bool.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    is_covered = boxes.new_zeros(len(regions), len(boxes), dtype=torch.bool)
    for i in range(0, regions.shape[1], chunk):
        region = regions[:, i : i + chunk, None]
        low = torch.maximum(region[..., :2], boxes[:, :2])
        high = torch.minimum(region[..., 2:], boxes[:, 2:])
        inside = (high - low).clamp(min=0).prod(-1)  # (N, chunk, R)
        is_covered |= ((inside >= share * area) & (inside > 0)).any(1)
    return is_covered


def weight_of_matched(weights: Tensor, index: Tensor) -> Tensor:
    """Weights of the boxes that predictions are matched with.

    Args:
        weights: (N, G), of the boxes.
        index: (N, R), of a box; -1 for none, where the result has no meaning.

    Returns:
        (N, R).
    """
    return F.pad(weights, (0, 1), value=1.0).gather(1, index.clamp(min=0))


def scale_gradient(x: Tensor, weight: Tensor) -> Tensor:
    """The same values, but with the gradient multiplied by `weight`."""
    fixed = x.detach()
    return fixed + weight * (x - fixed)
