"""Mask the losses where labels are missing or ignored.

Labels from teachers, or labels of only some classes, do not tell that a place without a box is
background. The losses of Detectron2's detectors, of d2kd's, and the set losses of detectors with
queries (DETR and its relatives) assume that they do. Inside a
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
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import singledispatch
from typing import Any

import torch
from detectron2.modeling.meta_arch import FCOS, GeneralizedRCNN, RetinaNet
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from .data import PartialMapper
from .detectors import DDOD
from .detectors.base import Locations, PointDetector, Predictions
from .lazy import resolve_target
from .loss_masks import BACKGROUND_LOGIT, covered, mask_scores, scale_gradient, weight_of_matched
from .set_losses import mask_set_losses
from .targets import Targets, equal_boxes

__all__ = ["check_partial_labels", "mask_partial_labels"]


def check_partial_labels(cfg: DictConfig, model: Any) -> None:
    """Check before training that the losses of a detector can be masked, if its labels need it.

    Args:
        cfg: a config whose `dataloader.train.mapper` may be a `PartialMapper`.
        model: the detector, or a distiller.

    Raises:
        TypeError: the mapper gives incomplete labels, and the losses cannot be masked.
    """
    mapper = OmegaConf.select(cfg, "dataloader.train.mapper")
    if not isinstance(mapper, DictConfig) or "_target_" not in mapper:
        return
    kind = resolve_target(mapper)
    if isinstance(kind, type) and issubclass(kind, PartialMapper):
        _changes(getattr(model, "student", model))


@contextmanager
def mask_partial_labels(detector: nn.Module, targets: Targets) -> Iterator[None]:
    """Mask the detector's losses by `targets` inside the `with` block.

    Complete labels change nothing.

    Raises:
        TypeError: the labels are incomplete, and the losses of this kind of detector cannot be
            masked.
    """
    with ExitStack() as stack:
        changes: list[tuple[nn.Module, str, Callable]] = [
            (module, name, functools.partial(change, getattr(module, name), targets))
            for module, name, change in ([] if targets.complete else _changes(detector))
        ]
        for module, name, change in [*changes, *_instance_heads(detector)]:
            stack.enter_context(_replaced(module, name, change))
        yield


@contextmanager
def _replaced(module: nn.Module, name: str, value: Callable) -> Iterator[None]:
    """Replace a method of one module. A function that the user has put there before comes back."""
    attributes = vars(module)
    before = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        attributes.pop(name, None)
        attributes.update(before)


@singledispatch
def _changes(detector: nn.Module) -> Sequence[tuple[nn.Module, str, Callable]]:
    """Triples of a module, the name of one of its methods, and a function that replaces the method.

    The function is called with the module's own method and the targets as first arguments.
    """
    criterion = getattr(detector, "criterion", None)
    if (changes := mask_set_losses(criterion)) is not None:
        return changes
    found = type(detector).__name__
    if get_loss := getattr(criterion, "get_loss", None):
        found += f" with {type(criterion).__name__}.get_loss{inspect.signature(get_loss)}"
    raise TypeError(
        f"d2kd cannot ignore regions or classes for this detector: expected RetinaNet, FCOS, one "
        f"of d2kd.detectors, a GeneralizedRCNN, or a `criterion` with DETR's "
        f"get_loss(loss, outputs, targets, indices, ...), found {found}. Train it on labels "
        f"without ignored regions and with all classes annotated."
    )


@_changes.register
def _(detector: RetinaNet):
    return [(detector, "losses", functools.partial(_retinanet, detector.num_classes))]


@_changes.register
def _(detector: FCOS):
    return [(detector, "losses", functools.partial(_fcos, detector.num_classes))]


@_changes.register
def _(detector: PointDetector):
    return [(detector, "losses", functools.partial(_points, detector))]


@_changes.register
def _(detector: DDOD):
    return [(detector, "losses", functools.partial(_guided, detector))]


@_changes.register
def _(detector: GeneralizedRCNN):
    changes = []
    if isinstance(detector.proposal_generator, RPN):
        changes.append((detector.proposal_generator, "losses", _proposals))
    predictor = detector.roi_heads.box_predictor
    stages = predictor if isinstance(predictor, nn.ModuleList) else [predictor]  # Cascade R-CNN
    return [*changes, *((stage, "losses", functools.partial(_regions, stage)) for stage in stages)]


def _instance_heads(detector: nn.Module) -> Iterator[tuple[nn.Module, str, Callable]]:
    """Triples of a module, the name of one of its methods, and a function that replaces the method.

    The modules are mask and keypoint heads. The functions skip images whose boxes have no masks or
    no keypoints.
    """
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
    """Call `forward` without the proposals of images whose boxes lack `field`.

    Args:
        x: features from which `forward` pools; or one row for each proposal.
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
    logits, deltas = _mask_unannotated(logits, targets), _scale_levels(deltas, weight)
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
    logits = _scale_levels(_mask_unannotated(logits, targets), weight)
    deltas, centerness = (_scale_levels(x, weight) for x in (deltas, centerness))
    if targets.ignored is not None:
        # FCOS's anchor is as small as a cell, so that only the location matters, not an overlap.
        # Its losses know no label for "ignored", hence the background logit.
        ignored = background & ~targets.known(Boxes.cat(anchors).get_centers())
        parts = ignored.split([x.shape[1] for x in logits], 1)
        logits = [
            torch.where(part[..., None], BACKGROUND_LOGIT, x)
            for part, x in zip(parts, logits, strict=True)
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
    if detector.guide is None:  # keep assigning by the unmasked predictions
        boxes = detector.decode(locations, predictions.regression).detach()
        detector.guide = predictions.logits.detach(), boxes
    matched = detector.match(locations, *detector.guide, truth, inside, detector.cls_alpha)
    changed = _changed(matched, targets, locations, predictions)
    return losses(locations, changed, truth, inside)


def _changed(
    matched: Tensor, targets: Targets, locations: Locations, predictions: Predictions
) -> Predictions:
    """Predictions without a gradient where the labels say nothing.

    Args:
        matched: (N, R), a label assignment: index of the box, or -1.
    """
    (logits,) = _mask_unannotated([predictions.logits], targets)
    regression, quality = predictions.regression, predictions.quality
    if targets.weights is not None:
        weight = torch.where(matched < 0, 1.0, weight_of_matched(targets.weights, matched))
        logits, regression = (scale_gradient(x, weight[..., None]) for x in (logits, regression))
        quality = None if quality is None else scale_gradient(quality, weight)
    if targets.ignored is not None:
        ignored = (matched < 0) & ~targets.known(locations.centers)
        logits = torch.where(ignored[..., None], BACKGROUND_LOGIT, logits)
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
        # Objectness covers all classes. If some classes were not annotated in an image, a negative
        # anchor that looks like an object may be one of them, and is ignored (ours). If no class
        # was annotated, all negatives are ignored.
        objects = torch.cat(logits, 1) > 0
        all_known, any_known = (
            f(1, keepdim=True) for f in (targets.annotated.all, targets.annotated.any)
        )
        labels = torch.where(negative & (~any_known | (objects & ~all_known)), -1, labels)
    weight = _weight(targets, labels == 1, boxes)
    logits, deltas = (_scale_levels(x, weight) for x in (logits, deltas))
    return losses(anchors, logits, list(labels), deltas, boxes)


def _regions(
    predictor: nn.Module, losses: Callable, targets: Targets, predictions, proposals
) -> dict[str, Tensor]:
    scores, deltas = predictions
    if targets.annotated is not None:
        annotated = torch.cat(
            [row.expand(len(p), -1) for row, p in zip(targets.annotated, proposals, strict=True)]
        )
        scores = mask_scores(scores, annotated, bool(predictor.use_sigmoid_ce))
    weights = []
    for i, p in enumerate(proposals):
        background = p.gt_classes == predictor.num_classes
        weight = torch.ones_like(background, dtype=scores.dtype)
        if targets.weights is not None and p.has("gt_boxes"):
            of_box = _weight_of_equal(p.gt_boxes.tensor, targets.boxes[i], targets.weights[i])
            weight = torch.where(background, weight, of_box)
        if targets.ignored is not None:
            ignored = covered(p.proposal_boxes.tensor, targets.ignored[i : i + 1])[0]
            weight = torch.where(background & ignored, 0.0, weight)
        weights.append(weight)
    weight = torch.cat(weights)[:, None]
    return losses((scale_gradient(scores, weight), scale_gradient(deltas, weight)), proposals)


def _mask_unannotated(logits: Sequence[Tensor], targets: Targets) -> list[Tensor]:
    """Replace logits (N, R_l, K) of classes that were not annotated by the background logit."""
    if targets.annotated is None:
        return list(logits)
    return [torch.where(targets.annotated[:, None], x, BACKGROUND_LOGIT) for x in logits]


def _weight(targets: Targets, positive: Tensor, boxes: Sequence[Tensor]) -> Tensor | None:
    """(N, R) weight of the box that a positive anchor is assigned to, 1 elsewhere.

    Args:
        boxes: for each image, the boxes (R, 4) that its anchors are assigned to.

    Returns:
        None if all weights are 1.
    """
    if targets.weights is None:
        return None
    weight = [_weight_of_equal(*x) for x in zip(boxes, targets.boxes, targets.weights, strict=True)]
    return torch.where(positive, torch.stack(weight), 1.0)


def _weight_of_equal(boxes: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """For each box (R, 4), the weight (G,) of the first equal box in `truth` (G, 4), else 1."""
    if not len(truth):
        return boxes.new_ones(len(boxes))
    equal = equal_boxes(boxes, truth)
    return torch.where(equal.any(1), weights[equal.to(torch.uint8).argmax(1)], 1.0)


def _scale_levels(maps: Sequence[Tensor], weight: Tensor | None) -> list[Tensor]:
    """`_scale` for a list of levels, (N, R_l) or (N, R_l, ...) each, by a weight (N, R)."""
    if weight is None:
        return list(maps)
    parts = weight.split([x.shape[1] for x in maps], 1)
    return [
        scale_gradient(x, part if x.dim() == 2 else part[..., None])
        for part, x in zip(parts, maps, strict=True)
    ]
