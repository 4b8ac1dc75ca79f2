"""The ground truth of a batch as dense tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["Targets", "equal_boxes"]


@dataclass(frozen=True)
class Targets:
    """Ground truth of one batch, padded to the largest number of boxes of an image.

    Shapes: N images, G boxes, I regions to ignore, K classes.

    Attributes:
        boxes: (N, G, 4) x1y1x2y2 in pixels of the padded input; rows without a box are zero.
        classes: (N, G) class indices in [0, K); -1 where there is no box.
        valid: (N, G) bool, True where there is a box.
        sizes: (N, 2) height and width of each image before padding, in pixels.
        counts: number of boxes of each image.
        ignored: (N, I, 4) x1y1x2y2, regions that are neither object nor background; rows without a
            region are zero. None if no image has such a region.
        annotated: (N, K) bool, the classes that were annotated in an image. Nothing is known about
            the other classes. None if all classes were annotated in all images.
        weights: (N, G) in [0, 1], the weight of a box in the losses. None if all weights are 1.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor
    sizes: Tensor
    counts: tuple[int, ...]
    ignored: Tensor | None = None
    annotated: Tensor | None = None
    weights: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether every place without a box is background, and all boxes count fully."""
        return self.ignored is None and self.annotated is None and self.weights is None

    @classmethod
    def from_inputs(
        cls, batched_inputs: Sequence[dict], device: torch.device | str, num_classes: int = 0
    ) -> Targets:
        """Collect the ground truth of Detectron2's `batched_inputs`.

        This also reads the fields that `d2kd.data.PartialMapper` adds: "ignore_boxes", (I, 4) in
        pixels; "annotated_classes", a list of class indices; and `gt_weights` of the instances.

        Args:
            num_classes: K; needed only if an input has "annotated_classes".

        Raises:
            ValueError: an input has no "instances", or a box of a class that is not among its
                "annotated_classes".
        """
        for i, x in enumerate(batched_inputs):
            if "instances" not in x:
                raise ValueError(
                    f"image {i} of the batch has no 'instances': expected ground truth in "
                    f"training, found only {sorted(x)}. Use a DatasetMapper with is_train=True."
                )
        targets = cls.from_instances([x["instances"] for x in batched_inputs], device)
        n, g = targets.valid.shape
        regions = [x.get("ignore_boxes", ()) for x in batched_inputs]
        annotated_classes = [x.get("annotated_classes") for x in batched_inputs]
        for x, classes in zip(batched_inputs, annotated_classes, strict=True):
            _check_annotated(x, classes, num_classes)
        weights = [x["instances"].get_fields().get("gt_weights") for x in batched_inputs]
        ignored = annotated = padded_weights = None
        if any(len(r) for r in regions):
            ignored = torch.zeros(n, max(len(r) for r in regions), 4)
            for row, r in zip(ignored, regions, strict=True):
                row[: len(r)] = torch.as_tensor(r, dtype=row.dtype).reshape(-1, 4)
        if any(classes is not None for classes in annotated_classes):
            annotated = torch.ones(n, num_classes, dtype=torch.bool)
            for row, classes in zip(annotated, annotated_classes, strict=True):
                if classes is not None:
                    row.fill_(False)[list(classes)] = True
        if any(w is not None for w in weights):
            padded_weights = torch.ones(n, g)
            for row, w in zip(padded_weights, weights, strict=True):
                if w is not None:
                    row[: len(w)] = w
        ignored, annotated, padded_weights = (
            x if x is None else x.to(device, non_blocking=True)
            for x in (ignored, annotated, padded_weights)
        )
        return replace(targets, ignored=ignored, annotated=annotated, weights=padded_weights)

    @classmethod
    def from_instances(cls, instances: Sequence[Instances], device: torch.device | str) -> Targets:
        """Collect `gt_boxes` and `gt_classes`.

        They are padded on the device where they are, usually the CPU, and then copied once, so that
        a training step on a GPU does not wait for many small copies.

        Raises:
            ValueError: there are no boxes, or a box does not have four numbers, as rotated boxes do
                not.
        """
        for x in instances:
            if not x.has("gt_boxes"):
                raise ValueError(
                    f"instances of a batch: expected gt_boxes, from which methods know where the "
                    f"objects are, found only {', '.join(x.get_fields()) or 'nothing'}. Use a "
                    f"mapper that gives boxes, such as DatasetMapper."
                )
            if x.gt_boxes.tensor.shape[-1] != 4:
                raise ValueError(
                    f"gt_boxes: expected upright boxes (x1, y1, x2, y2), found "
                    f"{type(x.gt_boxes).__name__} of {x.gt_boxes.tensor.shape[-1]} numbers. Use a "
                    f"mapper that makes upright boxes, such as Detectron2's DatasetMapper; d2kd "
                    f"does not support rotated boxes."
                )
        source = instances[0].gt_boxes.device
        counts = tuple(len(x) for x in instances)
        shape = (len(instances), max(counts))
        boxes = torch.zeros(*shape, 4, device=source)
        classes = torch.full(shape, -1, dtype=torch.long, device=source)
        for i, x in enumerate(instances):
            boxes[i, : len(x)] = x.gt_boxes.tensor
            classes[i, : len(x)] = x.gt_classes
        sizes = torch.tensor([tuple(x.image_size) for x in instances])
        boxes, classes, sizes = (x.to(device, non_blocking=True) for x in (boxes, classes, sizes))
        return cls(boxes, classes, classes >= 0, sizes, counts)

    def known(self, points: Tensor) -> Tensor:
        """Which points the labels say something about.

        Nothing is known inside a region to ignore, and in an image for which no class was
        annotated.

        Args:
            points: (R, 2) x, y in pixels.

        Returns:
            (N, R) bool.
        """
        known = points.new_ones(len(self.boxes), len(points), dtype=torch.bool)
        if self.annotated is not None:
            known &= self.annotated.any(1, keepdim=True)
        if self.ignored is not None:
            for box in self.ignored.unbind(1):  # few; (N, R) is the largest tensor
                low, high = box[:, None].split(2, -1)
                known &= ~((points >= low) & (points < high)).all(-1)
        return known

    def instances(self) -> list[Instances]:
        """The same ground truth in Detectron2's format."""
        return [
            Instances((0, 0), gt_boxes=Boxes(boxes[:n]), gt_classes=classes[:n])
            for boxes, classes, n in zip(self.boxes, self.classes, self.counts, strict=True)
        ]


def _check_annotated(x: dict, classes: Sequence[int] | None, num_classes: int) -> None:
    """Refuse a box of a class that its image was not searched for.

    The scores of this class are masked in this image, so that the box would teach nothing.
    """
    if classes is None:
        return
    name = x.get("file_name", "an image of the batch")
    unknown = sorted(c for c in set(classes) if not 0 <= c < num_classes)
    if unknown:
        raise ValueError(
            f"{name}: expected annotated_classes from 0 to {num_classes - 1}, the student's "
            f"classes, found {unknown}."
        )
    found = set(x["instances"].gt_classes.tolist())
    if foreign := sorted(found - set(classes)):
        raise ValueError(
            f"{name}: expected boxes of the classes that were searched for in this image "
            f"(annotated_classes {sorted(classes)}), found boxes of the classes {foreign}. Add "
            f"them to annotated_classes, or remove the boxes."
        )


def equal_boxes(boxes: Tensor, truth: Tensor) -> Tensor:
    """Compare each box with each true box, coordinate by coordinate.

    Detectron2's label assignment gives each anchor a copy of its box. This finds the box's index.

    Args:
        boxes: (..., R, 4).
        truth: (..., G, 4).

    Returns:
        (..., R, G) bool.
    """
    equal = boxes.new_ones(*boxes.shape[:-1], truth.shape[-2], dtype=torch.bool)
    for side in range(4):  # one side at a time, so that (..., R, G) bool is the largest tensor
        equal &= boxes[..., side, None] == truth[..., None, :, side]
    return equal
