"""Ground truth of a batch as dense tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["Targets"]


@dataclass(frozen=True)
class Targets:
    """Ground truth of one batch, padded to the largest number of boxes of an image.

    Shapes: N images, G boxes.

    Attributes:
        boxes: (N, G, 4) x1y1x2y2 in pixels of the padded input; rows without a box are zero.
        classes: (N, G) class indices in [0, K); -1 where there is no box.
        valid: (N, G) bool, True where there is a box.
        sizes: (N, 2) height and width of each image before padding, in pixels.
        counts: number of boxes of each image.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor
    sizes: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_inputs(cls, batched_inputs: Sequence[dict], device: torch.device | str) -> Targets:
        """Collect the ground truth of Detectron2's `batched_inputs`.

        Raises:
            ValueError: an input has no "instances".
        """
        for i, x in enumerate(batched_inputs):
            if "instances" not in x:
                raise ValueError(
                    f"image {i} of the batch has no 'instances': expected ground truth in "
                    f"training, found only {sorted(x)}. Use a DatasetMapper with is_train=True."
                )
        return cls.from_instances([x["instances"] for x in batched_inputs], device)

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device | str) -> Targets:
        """Collect `gt_boxes` and `gt_classes`.

        They are padded where they are (on the CPU, where the mapper left them) and copied once,
        so that a training step on a GPU does not wait for them.
        """
        where = instances[0].gt_boxes.device
        counts = tuple(len(x) for x in instances)
        shape = (len(instances), max(counts))
        boxes = torch.zeros(*shape, 4, device=where)
        classes = torch.full(shape, -1, dtype=torch.long, device=where)
        for i, x in enumerate(instances):
            boxes[i, : len(x)] = x.gt_boxes.tensor
            classes[i, : len(x)] = x.gt_classes
        sizes = torch.tensor([tuple(x.image_size) for x in instances])
        boxes, classes, sizes = (x.to(device, non_blocking=True) for x in (boxes, classes, sizes))
        return cls(boxes, classes, classes >= 0, sizes, counts)

    def instances(self) -> list[Instances]:
        """The same ground truth as Detectron2 gives it to its detectors."""
        return [
            Instances((0, 0), gt_boxes=Boxes(boxes[:n]), gt_classes=classes[:n])
            for boxes, classes, n in zip(self.boxes, self.classes, self.counts, strict=True)
        ]
