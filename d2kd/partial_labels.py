"""Mask the losses where labels are missing or ignored.

Labels from teachers, or labels of only some classes, do not tell that a place without a box is
background. The losses of Detectron2's detectors, and of d2kd's, assume that they do. Inside a
`with mask_partial_labels(detector, targets)` block, the losses get predictions without a gradient
wherever the labels say nothing:

- a region to ignore: the predictions inside it that are not positive for a box;
- a class that was not annotated in an image: the scores of this class in this image;
- a box with a weight below 1: the gradient of its positives is multiplied by the weight.

Boxes from teachers have no masks and no keypoints. The mask and keypoint losses skip images whose
boxes have none.

The detectors contain no code for this. Shapes: N images, R anchors of all levels, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import singledispatch

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import FCOS, GeneralizedRCNN, RetinaNet
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .detectors import DDOD
from .detectors.base import Locations, PointDetector, Predictions
from .targets import Targets, same_boxes

__all__ = ["covered", "mask_partial_labels"]

# A logit that says "no" so surely that neither loss nor gradient is left of it: sigmoid 2e-9.
_NO = -20.0
# Share of an anchor or proposal inside a region to ignore from which on it is ignored (LabelMatch,
# arXiv 2206.06608, as released). Whatever would be a positive for the region, at IoU 0.5, is.
_COVERED = 0.5


@contextmanager
def mask_partial_labels(detector: nn.Module, targets: Targets) -> Iterator[None]:
    """Let the detector's losses heed `targets` while the block lasts.

    Raises:
        TypeError: the labels leave something open, and nobody has said how to change the losses
            of such a detector.
    """
    with ExitStack() as stack:
        changes = [
            (module, "losses", functools.partial(change, module.losses, targets))
            for module, change in ([] if targets.whole else _changes(detector, targets))
        ]
        for module, name, change in [*changes, *_instance_heads(detector)]:
            setattr(module, name, change)
            stack.callback(delattr, module, name)
        yield


@singledispatch
def _changes(detector: nn.Module, targets: Targets) -> Sequence[tuple[nn.Module, Callable]]:
    """Modules and what is to be called, with the module's own `losses`, in place of it."""
    raise TypeError(
        f"d2kd cannot ignore regions or classes for a {type(detector).__name__}: expected "
        f"RetinaNet, FCOS, one of d2kd.detectors or a GeneralizedRCNN. Train it on labels without "
        f"ignored regions, of all classes."
    )


@_changes.register
def _(detector: RetinaNet, targets: Targets):
    return [(detector, functools.partial(_retinanet, detector.num_classes))]


@_changes.register
def _(detector: FCOS, targets: Targets):
    return [(detector, functools.partial(_fcos, detector.num_classes))]


@_changes.register
def _(detector: PointDetector, targets: Targets):
    return [(detector, functools.partial(_points, detector))]


@_changes.register
def _(detector: DDOD, targets: Targets):
    return [(detector, functools.partial(_guided, detector))]


@_changes.register
def _(detector: GeneralizedRCNN, targets: Targets):
    found = []
    if isinstance(detector.proposal_generator, RPN):
        found.append((detector.proposal_generator, _proposals))
    predictor = detector.roi_heads.box_predictor
    stages = predictor if isinstance(predictor, nn.ModuleList) else [predictor]  # Cascade R-CNN
    return [*found, *((stage, functools.partial(_regions, stage)) for stage in stages)]


def _instance_heads(detector: nn.Module) -> Iterator[tuple[nn.Module, str, Callable]]:
    """Modules, a method of each, and what is to be called in place of it: mask and keypoint heads
    that leave out images whose boxes have no masks or keypoints."""
    heads = getattr(detector, "roi_heads", None)
    for kind in ("mask", "keypoint"):
        if isinstance(heads, StandardROIHeads) and getattr(heads, f"{kind}_on"):
            module, name = heads, f"_forward_{kind}"
        elif isinstance(heads, Res5ROIHeads) and kind == "mask" and heads.mask_on:
            module, name = heads.mask_head, "forward"
        else:
            continue
        yield module, name, functools.partial(_having, f"gt_{kind}s", getattr(module, name))


def _having(field: str, forward: Callable, x, instances: list[Instances]) -> dict[str, Tensor]:
    """`forward` without the proposals of images whose boxes lack `field`.

    Args:
        x: features, from which `forward` pools; or a row for each proposal.
    """
    kept = [p if p.has(field) else p[:0] for p in instances]
    if isinstance(x, Tensor) and sum(map(len, kept)) < len(x):
        parts = x.split([len(p) for p in instances])
        x = torch.cat([part[: len(p)] for part, p in zip(parts, kept, strict=True)])
    return forward(x, kept)


def _retinanet(
    num_classes: int, losses: Callable, targets: Targets, anchors, logits, labels, deltas, boxes
) -> dict[str, Tensor]:
    labels = torch.stack(labels)
    positive = (labels >= 0) & (labels < num_classes)
    weight = _weight(targets, positive, boxes)
    logits, deltas = _searched(logits, targets), _scale_levels(deltas, weight)
    logits = _scale_levels(logits, weight)
    if targets.ignored is not None:
        ignored = covered(Boxes.cat(anchors).tensor, targets.ignored)
        labels = torch.where((labels == num_classes) & ignored, -1, labels)
    return losses(anchors, logits, list(labels), deltas, boxes)


def _fcos(
    num_classes: int,
    losses: Callable,
    targets: Targets,
    anchors,
    logits,
    labels,
    deltas,
    boxes,
    centerness,
) -> dict[str, Tensor]:
    background = torch.stack(labels) == num_classes
    weight = _weight(targets, ~background, boxes)
    logits = _scale_levels(_searched(logits, targets), weight)
    deltas, centerness = (_scale_levels(x, weight) for x in (deltas, centerness))
    if targets.ignored is not None:
        # Of a point only its place counts: its anchor is as small as a cell. FCOS's losses know
        # no label for "ignored".
        ignored = background & ~targets.known(Boxes.cat(anchors).get_centers())
        parts = ignored.split([x.shape[1] for x in logits], 1)
        logits = [
            torch.where(part[..., None], _NO, x) for part, x in zip(parts, logits, strict=True)
        ]
    return losses(anchors, logits, labels, deltas, boxes, centerness)


def _points(
    detector: PointDetector,
    losses: Callable,
    targets: Targets,
    locations: Locations,
    predictions: Predictions,
    truth: Targets,
    inside: Tensor,
) -> dict[str, Tensor]:
    matched = detector.assign(locations, predictions, truth, inside)
    changed = _changed(matched, targets, locations, predictions)
    return losses(locations, changed, truth, inside)


def _guided(
    detector: DDOD,
    losses: Callable,
    targets: Targets,
    locations: Locations,
    predictions: Predictions,
    truth: Targets,
    inside: Tensor,
) -> dict[str, Tensor]:
    if detector.guide is None:  # what it assigns by must not change
        boxes = detector.decode(locations, predictions.regression).detach()
        detector.guide = predictions.logits.detach(), boxes
    matched = detector.match(locations, *detector.guide, truth, inside, detector.cls_alpha)
    changed = _changed(matched, targets, locations, predictions)
    return losses(locations, changed, truth, inside)


def _changed(
    matched: Tensor, targets: Targets, locations: Locations, predictions: Predictions
) -> Predictions:
    """Predictions without a gradient where nothing is known; `matched` is an assignment (N, R)."""
    (logits,) = _searched([predictions.logits], targets)
    regression, quality = predictions.regression, predictions.quality
    if targets.weights is not None:
        weight = torch.where(matched < 0, 1.0, _gather(targets.weights, matched))
        logits, regression = (_scale(x, weight[..., None]) for x in (logits, regression))
        quality = None if quality is None else _scale(quality, weight)
    if targets.ignored is not None:
        ignored = (matched < 0) & ~targets.known(locations.centers)
        logits = torch.where(ignored[..., None], _NO, logits)
    return Predictions(logits, regression, quality)


def _proposals(
    losses: Callable, targets: Targets, anchors, logits, labels, deltas, boxes
) -> dict[str, Tensor]:
    labels = torch.stack(labels)
    negative = labels == 0
    if targets.ignored is not None:
        ignored = covered(Boxes.cat(anchors).tensor, targets.ignored)
        labels = torch.where(negative & ignored, -1, labels)
    if targets.annotated is not None:
        # A proposal is of any class. In an image that was not searched for all of them, what looks
        # like an object may be one of the others (ours); without any, nothing is known at all.
        objects = torch.cat(logits, 1) > 0
        whole, some = (f(1, keepdim=True) for f in (targets.annotated.all, targets.annotated.any))
        labels = torch.where(negative & (~some | (objects & ~whole)), -1, labels)
    weight = _weight(targets, labels == 1, boxes)
    logits, deltas = (_scale_levels(x, weight) for x in (logits, deltas))
    return losses(anchors, logits, list(labels), deltas, boxes)


def _regions(
    predictor: nn.Module, losses: Callable, targets: Targets, predictions, proposals
) -> dict[str, Tensor]:
    scores, deltas = predictions
    if targets.annotated is not None:
        searched = torch.cat(
            [row.expand(len(p), -1) for row, p in zip(targets.annotated, proposals, strict=True)]
        )
        scores = _only_searched(scores, searched, predictor.use_sigmoid_ce)
    weights = []
    for i, p in enumerate(proposals):
        background = p.gt_classes == predictor.num_classes
        weight = torch.ones_like(background, dtype=scores.dtype)
        if targets.weights is not None and p.has("gt_boxes"):
            of_box = _of_same(p.gt_boxes.tensor, targets.boxes[i], targets.weights[i])
            weight = torch.where(background, weight, of_box)
        if targets.ignored is not None:
            ignored = covered(p.proposal_boxes.tensor, targets.ignored[i : i + 1])[0]
            weight = torch.where(background & ignored, 0.0, weight)
        weights.append(weight)
    weight = torch.cat(weights)[:, None]
    return losses((_scale(scores, weight), _scale(deltas, weight)), proposals)


def _only_searched(scores: Tensor, searched: Tensor, sigmoid: bool) -> Tensor:
    """Class scores (P, K + 1) of proposals in images that were searched for some classes only.

    With sigmoids the scores of the others say "no", and get no gradient. In a softmax "background"
    then stands for all that is unknown, as in MiB (arXiv 2002.00718): its logit becomes the
    log-sum-exp of its own and of those of the classes not searched for.
    """
    searched = F.pad(searched, (0, 1), value=True)  # and the background
    if sigmoid:
        return torch.where(searched, scores, _NO)
    low = torch.finfo(scores.dtype).min / 2
    unknown = torch.where(searched, low, scores)
    unknown = torch.cat([unknown[:, :-1], scores[:, -1:]], 1).logsumexp(1, keepdim=True)
    return torch.cat([torch.where(searched, scores, low)[:, :-1], unknown], 1)


def covered(boxes: Tensor, regions: Tensor, share: float = _COVERED, chunk: int = 32) -> Tensor:
    """Which boxes lie in a region with at least a share of their area.

    Args:
        boxes: (R, 4).
        regions: (N, I, 4); rows without one are zero.
        chunk: regions that meet all boxes at once, which bounds memory.

    Returns:
        (N, R) bool.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    found = boxes.new_zeros(len(regions), len(boxes), dtype=torch.bool)
    for i in range(0, regions.shape[1], chunk):
        region = regions[:, i : i + chunk, None]
        low = torch.maximum(region[..., :2], boxes[:, :2])
        high = torch.minimum(region[..., 2:], boxes[:, 2:])
        inside = (high - low).clamp(min=0).prod(-1)  # (N, chunk, R)
        found |= ((inside >= share * area) & (inside > 0)).any(1)
    return found


def _searched(logits: Sequence[Tensor], targets: Targets) -> list[Tensor]:
    """Logits (N, R_l, K) that say "no" for classes that an image was not searched for."""
    if targets.annotated is None:
        return list(logits)
    return [torch.where(targets.annotated[:, None], x, _NO) for x in logits]


def _weight(targets: Targets, positive: Tensor, boxes: Sequence[Tensor]) -> Tensor | None:
    """(N, R) weight of the box that a positive anchor got, 1 elsewhere; None where all are 1.

    Args:
        boxes: of each image the (R, 4) that its anchors got.
    """
    if targets.weights is None:
        return None
    weight = [_of_same(*x) for x in zip(boxes, targets.boxes, targets.weights, strict=True)]
    return torch.where(positive, torch.stack(weight), 1.0)


def _of_same(boxes: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """(R,) of the weights (G,), that of the first of the boxes `truth` (G, 4) that is the same."""
    if not len(truth):
        return boxes.new_ones(len(boxes))
    same = same_boxes(boxes, truth)
    return torch.where(same.any(1), weights[same.to(torch.uint8).argmax(1)], 1.0)


def _gather(weights: Tensor, index: Tensor) -> Tensor:
    return F.pad(weights, (0, 1), value=1.0).gather(1, index.clamp(min=0))


def _scale(x: Tensor, weight: Tensor) -> Tensor:
    """The same values, with the gradient times `weight`."""
    fixed = x.detach()
    return fixed + weight * (x - fixed)


def _scale_levels(maps: Sequence[Tensor], weight: Tensor | None) -> list[Tensor]:
    """`_scale` of (N, R_l) or (N, R_l, ...) of each level by (N, R)."""
    if weight is None:
        return list(maps)
    parts = weight.split([x.shape[1] for x in maps], 1)
    return [
        _scale(x, part if x.dim() == 2 else part[..., None])
        for part, x in zip(parts, maps, strict=True)
    ]
