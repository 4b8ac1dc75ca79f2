"""Mask the losses of detectors with queries (DETR and its relatives) where labels are missing.

Shapes: N images, Q queries, K classes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .loss_masks import BACKGROUND_LOGIT, covered, mask_scores, scale_gradient, weight_of_matched
from .targets import Targets

__all__ = ["mask_set_losses"]

_GET_LOSS = ("loss", "outputs", "targets", "indices")  # the first arguments of DETR's

# Attribute of a criterion whose boxes are known to be centers and sides relative to the image.
# Comparing them in each step would make the host wait for the GPU.
_RELATIVE = "_d2kd_boxes_are_relative"


def mask_set_losses(criterion: Any) -> list[tuple[Any, str, Callable]] | None:
    """What masks the losses of a set criterion: DETR's and those that were made from it.

    Returns:
        triples as those of `d2kd.partial_labels`: the criterion, the name of one of its methods,
        and a function that replaces the method. None for an object that is no such criterion.
    """
    get_loss = getattr(criterion, "get_loss", None)
    if not isinstance(criterion, nn.Module) or get_loss is None:
        return None
    # Align-DETR, for example, has a `get_loss` without a name of a loss.
    parameters = inspect.signature(get_loss).parameters.values()
    names = [x.name for x in parameters if x.kind is x.POSITIONAL_OR_KEYWORD]
    if any(name != expected for name, expected in zip(names, _GET_LOSS, strict=False)):
        return None
    labels: list[Tensor] = []  # of the images, as the detector gives them to the criterion

    def remember_labels(forward: Callable, _targets: Targets, *args, **named):
        truth = named["targets"] if "targets" in named else args[1]
        labels[:] = [x["labels"] for x in truth]
        return forward(*args, **named)

    return [
        (criterion, "forward", remember_labels),
        (criterion, "get_loss", functools.partial(_masked_set_loss, criterion, labels)),
    ]


def _masked_set_loss(
    criterion: Any,
    labels: Sequence[Tensor],
    get_loss: Callable,
    targets: Targets,
    loss: str,
    outputs: Mapping[str, Any],
    truth: Sequence[Mapping[str, Tensor]],
    indices: Sequence[tuple[Tensor, Tensor]],
    *more,
    **named,
) -> dict[str, Tensor]:
    """One loss of a set criterion.

    The criterion calls `get_loss` for the outputs of each decoder layer, of the encoder and of the
    denoising queries, with the matching that it has found for them. So all of them are masked here.

    Args:
        criterion: with `num_classes`, K.
        labels: of each image, as the detector gave them to the criterion.
        get_loss: the criterion's own method.
        loss: name of the loss.
        outputs: "pred_logits" (N, Q, K) for sigmoids or (N, Q, K + 1) for a softmax, and
            "pred_boxes" (N, Q, 4) or "pred_masks" (N, Q, H, W).
        truth: "labels" and "boxes" of each image, in the order of its instances.
        indices: of each image, the matched queries and the boxes that they are matched with.

    Raises:
        TypeError: the number of logits, or the form of the boxes, is not known.
    """
    logits = outputs["pred_logits"]
    matched = logits.new_full(logits.shape[:2], -1, dtype=torch.long)
    for row, (queries, boxes) in zip(matched, indices, strict=True):
        row[queries.to(row.device)] = boxes.to(row.device)
    changed = dict(outputs)
    if targets.weights is not None:
        weight = torch.where(matched < 0, 1.0, weight_of_matched(targets.weights, matched))
        for name in ("pred_logits", "pred_boxes", "pred_masks"):
            if name in changed:
                shape = *weight.shape, *[1] * (changed[name].dim() - 2)
                changed[name] = scale_gradient(changed[name], weight.view(shape))
    known = logits.new_ones(*logits.shape[:2], criterion.num_classes, dtype=torch.bool)
    if targets.annotated is not None:
        # If the labels are objectness of all classes, an object without a box may be one of the
        # classes that were not annotated.
        objects = (matched >= 0) | targets.annotated.all(1, keepdim=True)
        are_classes = _are_classes(truth, labels, targets)
        known &= torch.where(are_classes, targets.annotated[:, None], objects[..., None])
    if targets.ignored is not None:
        boxes = _query_boxes(criterion, outputs, truth, targets)
        ignored = torch.stack(
            [covered(b, r[None])[0] for b, r in zip(boxes, targets.ignored, strict=True)]
        )
        known &= ~(ignored & (matched < 0))[..., None]
    if targets.annotated is not None or targets.ignored is not None:
        changed["pred_logits"] = _mask_query_scores(criterion, changed["pred_logits"], known)
    return get_loss(loss, changed, truth, indices, *more, **named)


def _are_classes(
    truth: Sequence[Mapping[str, Tensor]], labels: Sequence[Tensor], targets: Targets
) -> Tensor:
    """Whether the labels of a set criterion are classes. Encoders may know one class, "object".

    For an encoder, the criterion writes 0 for "object" into a copy of the labels. If all boxes of
    a batch are of class 0, values do not tell such a copy from classes, so it counts as "object".

    Returns:
        a bool scalar on the device, because reading it would make the host wait in each step.
    """
    pairs = zip(truth, labels, strict=False)
    if len(labels) == len(truth) and all(x["labels"] is given for x, given in pairs):
        return targets.classes.new_ones((), dtype=torch.bool)
    found = torch.cat([x["labels"] for x in truth]).to(targets.classes)
    return (found == _unpadded(targets.classes, targets)).all() & (found != 0).any()


def _unpadded(rows: Tensor, targets: Targets) -> Tensor:
    """Rows (N, G, ...) of the boxes that there are. Indexing by a mask would make the host wait."""
    return torch.cat([row[:count] for row, count in zip(rows, targets.counts, strict=True)])


def _mask_query_scores(criterion: Any, logits: Tensor, known: Tensor) -> Tensor:
    """Logits (N, Q, K) or (N, Q, K + 1) without a gradient where `known`, (N, Q, K), is False."""
    if logits.shape[-1] == criterion.num_classes:  # sigmoids
        return torch.where(known, logits, BACKGROUND_LOGIT)
    if logits.shape[-1] == criterion.num_classes + 1:  # a softmax, whose last class is "no object"
        return mask_scores(logits.flatten(0, 1), known.flatten(0, 1), False).view_as(logits)
    raise TypeError(
        f"{type(criterion).__name__}: expected logits of {criterion.num_classes} classes, or of "
        f"one more, to ignore regions or classes, found {logits.shape[-1]}. Train this detector on "
        f"labels without ignored regions and with all classes annotated."
    )


def _query_boxes(
    criterion: Any,
    outputs: Mapping[str, Any],
    truth: Sequence[Mapping[str, Tensor]],
    targets: Targets,
) -> Tensor:
    """The predicted boxes of a set criterion, (N, Q, 4) x1y1x2y2 in pixels, without gradients.

    Raises:
        TypeError: there are no boxes, or they are in a form that is not known.
    """
    problem = "none"
    if "pred_boxes" in outputs:
        sizes = targets.sizes.to(outputs["pred_boxes"])
        if _are_relative(criterion, truth, targets):
            predicted = outputs["pred_boxes"].detach()
            if "image_size_xyxy" in truth[0]:  # Sparse R-CNN predicts corners in pixels
                return predicted
            return torch.stack([_in_pixels(b, s) for b, s in zip(predicted, sizes, strict=True)])
        problem = "boxes in another form"
    raise TypeError(
        f"{type(criterion).__name__}: expected boxes as centers and sides relative to the image, "
        f"to ignore regions, found {problem}. Train this detector on labels without ignored "
        f"regions."
    )


def _are_relative(
    criterion: nn.Module, truth: Sequence[Mapping[str, Tensor]], targets: Targets
) -> bool:
    """Whether a criterion's boxes are centers and sides relative to the image.

    A batch without boxes does not tell. It counts as True, and the next batch is looked at.
    """
    if hasattr(criterion, _RELATIVE) or not sum(targets.counts):
        return True
    sizes = targets.sizes.to(truth[0]["boxes"])
    own = [_in_pixels(x["boxes"], size) for x, size in zip(truth, sizes, strict=True)]
    given = _unpadded(targets.boxes, targets).to(sizes)
    if torch.allclose(torch.cat(own), given, atol=1.0, rtol=0):
        setattr(criterion, _RELATIVE, True)
    return hasattr(criterion, _RELATIVE)


def _in_pixels(boxes: Tensor, size: Tensor) -> Tensor:
    """Relative centers and sides (..., 4) as x1y1x2y2 in an image of the size (height, width)."""
    center, side = boxes.split(2, -1)
    corners = torch.cat([center - side / 2, center + side / 2], -1)
    return corners * size.flip(0).repeat(2)
