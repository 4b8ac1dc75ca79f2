"""What a detector shows about one batch, in terms that every method understands.

Shapes: N images, L levels, C channels, H x W cells of a level, K classes, A anchors per cell,
G boxes (the largest number in the batch; shorter rows are padded and marked invalid).
Boxes are x1y1x2y2 in pixels of the padded input, whose origin every network shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Knowledge", "Targets"]


@dataclass
class Knowledge:
    """One detector's maps for one batch. Student and teacher give the same type.

    Attributes:
        padded_size: height and width of the padded input, in pixels.
        features: level name -> (N, C, H, W), what the neck hands to the head.
        logits: level name -> (N, A*K, H, W), class logits; empty unless a method needs them.
    """

    padded_size: tuple[int, int] = (0, 0)
    features: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """Ground truth of one batch as dense tensors.

    Attributes:
        boxes: (N, G, 4) in pixels of the padded input; rows without a box are zero.
        classes: (N, G) class indices in [0, K); -1 where there is no box.
        valid: (N, G) bool, True where there is a box.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor

    @classmethod
    def from_inputs(cls, batched_inputs: Sequence[dict], device: torch.device | str) -> Targets:
        """Collect the ground truth of Detectron2's `batched_inputs`.

        It is padded where the mapper left it (on the CPU) and copied once, so that a training
        step on a GPU does not wait for it.

        Raises:
            ValueError: an input has no "instances".
        """
        for i, x in enumerate(batched_inputs):
            if "instances" not in x:
                raise ValueError(
                    f"image {i} of the batch has no 'instances': expected ground truth in "
                    f"training, found only {sorted(x)}. Use a DatasetMapper with is_train=True."
                )
        instances = [x["instances"] for x in batched_inputs]
        where = instances[0].gt_boxes.device
        shape = (len(instances), max(len(x) for x in instances))
        boxes = torch.zeros(*shape, 4, device=where)
        classes = torch.full(shape, -1, dtype=torch.long, device=where)
        for i, x in enumerate(instances):
            boxes[i, : len(x)] = x.gt_boxes.tensor
            classes[i, : len(x)] = x.gt_classes
        boxes = boxes.to(device, non_blocking=True)
        classes = classes.to(device, non_blocking=True)
        return cls(boxes, classes, classes >= 0)
