"""The inputs of a training batch before and after a mean teacher has labeled them.

Shapes: K classes of the student, M labels of one image.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..matching import Detections, GroundTruth
from .coco import MIN_SIDE
from .fuse import Labels

__all__ = ["detections", "take_weak_view", "truth", "with_labels", "without_slivers"]


def take_weak_view(x: dict) -> Tensor:
    """Remove the weak view (3, H, W) from an input, and return it.

    Raises:
        ValueError: there is none.
    """
    if "weak_image" not in x:
        raise ValueError(
            f"dataloader.train.mapper: expected d2kd.data.TwoViewMapper, whose weak view "
            f"train.mean_teacher labels, found inputs with {', '.join(sorted(x))}."
        )
    return x.pop("weak_image")


def truth(x: dict) -> GroundTruth:
    """The boxes of an input, in pixels of the view."""
    instances = x["instances"]
    return GroundTruth(instances.gt_boxes.tensor.double().numpy(), instances.gt_classes.numpy())


def detections(instances: Instances) -> Detections:
    """What a detector found in an image, in fp32, by descending score."""
    found = Detections(
        boxes=instances.pred_boxes.tensor.float().cpu().numpy(),
        scores=instances.scores.float().cpu().numpy(),
        classes=instances.pred_classes.cpu().numpy().astype(np.int64),
    )
    return found[np.argsort(-found.scores, kind="stable")]


def without_slivers(labels: Labels) -> Labels:
    """Without boxes that have a side below `MIN_SIDE`, as in labels that are made once."""
    kept = (labels.boxes[:, 2:] - labels.boxes[:, :2] >= MIN_SIDE).all(1)
    return Labels(**{name: value[kept] for name, value in vars(labels).items()})


def with_labels(x: dict, labels: Labels) -> dict:
    """An input of the student with the teacher's labels of the classes that were missing.

    Masks and keypoints are left out, because the teacher's labels are boxes.
    """
    old = x["instances"][:0] if x.get("relabel") else x["instances"]
    regions = torch.as_tensor(labels.boxes[labels.ignore])
    if not x.get("relabel") and "ignore_boxes" in x:
        regions = torch.cat([x["ignore_boxes"], regions])
    objects = ~labels.ignore
    boxes = torch.as_tensor(labels.boxes[objects])
    instances = Instances(old.image_size)
    instances.gt_boxes = Boxes(torch.cat([old.gt_boxes.tensor, boxes]))
    instances.gt_classes = torch.cat([old.gt_classes, torch.as_tensor(labels.classes[objects])])
    weights = torch.as_tensor(labels.weights[objects])
    if old.has("gt_weights") or (weights != 1).any():
        own = old.gt_weights if old.has("gt_weights") else torch.ones(len(old))
        instances.gt_weights = torch.cat([own, weights])
    rest = {k: v for k, v in x.items() if k != "annotated_classes"}
    return {**rest, "instances": instances, "ignore_boxes": regions}
