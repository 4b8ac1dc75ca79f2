"""Base class of the dense detectors that make one prediction per location.

Shapes: N images, L levels, K classes, G boxes per image, C channels, R locations of all levels.
Locations are ordered level by level, then row by row. Boxes are x1y1x2y2 in pixels of the padded
input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..signature import merge_signature
from ..targets import Targets
from .head import PointHead
from .structures import Locations, Predictions

__all__ = ["Locations", "PointDetector", "Predictions"]


class PointDetector(DenseDetector):
    """A Detectron2 `DenseDetector` with one prediction at each location of each level.

    A subclass implements `decode`, `assign` and `losses`. It may also override `scores` and the
    attributes below.
    """

    anchor_scale = 8
    """Side of the default anchors, in strides."""

    pad_size_divisor = 32
    """An image's own frame is its size, rounded up to a multiple of this many pixels. Locations
    outside the frame are neither candidates nor in the losses. 0 keeps all locations."""

    box_channels = 4
    """Channels of the box regression, D."""

    has_quality = True
    """Whether the head has a quality branch."""

    rank_by_quality = False
    """Whether inference ranks the locations of a level by class probability times quality. If it is
    False, the rank is the class probability alone."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        merge_signature(cls)

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        num_classes: int,
        anchor_generator: DefaultAnchorGenerator | None = None,
        head_in_features: Sequence[str] | None = None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
    ):
        """
        Args:
            backbone: maps (N, 3, H, W) to a dict of pyramid maps.
            head: maps the list of pyramid maps to lists over levels: class logits (N, K, H, W), box
                regression (N, D, H, W) and, with a quality branch, quality logits (N, 1, H, W). See
                `PointHead`.
            num_classes: K.
            anchor_generator: makes one anchor at each location. By default, the anchor is a square
                with sides of `anchor_scale` strides. Its center is the corner of the cell, (stride
                * column, stride * row).
            head_in_features: names of the levels that the head uses, finest first; by default all
                levels of the backbone.
            pixel_mean: mean of each channel, in the order of `input_format`.
            pixel_std: standard deviation of each channel, in the order of `input_format`.
            input_format: channel order of the images, "BGR" or "RGB".
            test_score_thresh: a detection needs a class probability above this threshold. The
                probability is compared before it is multiplied by the quality.
            test_topk_candidates: locations that are kept at each level before that threshold.
            test_nms_thresh: if two boxes of the same class have a larger IoU, NMS removes the one
                with the lower score.
            max_detections_per_image: detections that are kept after NMS.

        Raises:
            ValueError: the anchor generator does not fit the levels, or the head does not fit the
                backbone, the classes or the detector.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.num_classes = num_classes
        self.input_format = input_format
        shapes = backbone.output_shape()
        self.strides = [shapes[level].stride for level in self.head_in_features]
        self.anchor_generator = anchor_generator or DefaultAnchorGenerator(
            sizes=[[self.anchor_scale * stride] for stride in self.strides],
            aspect_ratios=[1.0],
            strides=self.strides,
            offset=0.0,
        )
        strides, cells = self.anchor_generator.strides, self.anchor_generator.num_anchors
        if list(strides) != self.strides or set(cells) != {1}:
            raise ValueError(
                f"{type(self).__name__}: expected one anchor at each location of the strides "
                f"{self.strides}, found {list(cells)} at the strides {list(strides)}. Give the "
                f"anchor_generator one size and one ratio for each of head_in_features."
            )
        if isinstance(head, PointHead):
            self._check_head(head, {shapes[level].channels for level in self.head_in_features})
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    def _check_head(self, head: PointHead, widths: set[int]) -> None:
        """Raise a ValueError if the head does not fit; `widths` are the channels of the levels."""
        branch = {True: "a quality branch", False: "no quality branch"}
        for expected, found in (
            (f"{len(self.head_in_features)} levels", f"{len(head.scales)} levels"),
            *(
                (f"{n} input channels", f"{head.cls_subnet[0].in_channels} input channels")
                for n in sorted(widths)
            ),
            (f"{self.num_classes} classes", f"{head.cls_score.out_channels} classes"),
            (f"{self.box_channels} box channels", f"{head.bbox_pred.out_channels} box channels"),
            (branch[self.has_quality], branch[head.quality is not None]),
        ):
            if expected != found:
                raise ValueError(
                    f"{type(self).__name__}: expected a head with {expected}, found {found}. "
                    f"Change the fields of its head."
                )

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        """Convert box regression to boxes; differentiable.

        Args:
            locations: anchors and levels.
            regression: (N, R, D) in the detector's own coding.

        Returns:
            (N, R, 4) boxes in pixels.
        """
        raise NotImplementedError

    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> Tensor:
        """Choose the box that each location is positive for; without gradient.

        Args:
            locations: anchors and levels.
            predictions: outputs of the head.
            targets: ground truth.
            in_image: (N, R) bool, the locations that may be positive, see `in_image_mask`.

        Returns:
            (N, R) long, index of the box in [0, G), or -1 if the location is not positive.
        """
        raise NotImplementedError

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, in_image: Tensor
    ) -> dict[str, Tensor]:
        """Compute the training losses.

        Args:
            locations: anchors and levels.
            predictions: outputs of the head.
            targets: ground truth.
            in_image: (N, R) bool, the locations that take part, see `in_image_mask`.

        Returns:
            loss name -> scalar, already multiplied by the weight of the loss.
        """
        raise NotImplementedError

    def scores(self, predictions: Predictions) -> tuple[Tensor, Tensor | None]:
        """Compute what the scores of detections are made of.

        Returns:
            (N, R, K) class probabilities; (N, R) quality in [0, 1], by which the probabilities of
            detections are multiplied, or None if there is no quality branch.
        """
        quality = predictions.quality
        return predictions.logits.sigmoid(), None if quality is None else quality.sigmoid()

    def locations(self, maps: list[Tensor]) -> Locations:
        """List the locations of pyramid maps.

        Args:
            maps: a map (N, C, H, W) of each level, finest first.
        """
        anchors = Boxes.cat(self.anchor_generator(maps)).tensor
        # While the model is traced, the counts are tensors and follow the image size.
        counts = tuple(x.shape[-2] * x.shape[-1] for x in maps)
        strides = [
            anchors.new_full((count,), stride)
            for count, stride in zip(counts, self.strides, strict=True)
        ]
        return Locations(anchors, torch.cat(strides), counts)

    def predictions(self, output: tuple[list[Tensor], ...]) -> Predictions:
        """Flatten the outputs of the head.

        Args:
            output: lists over levels of class logits (N, K, H, W), box regression (N, D, H, W) and,
                with a quality branch, quality logits (N, 1, H, W).
        """
        logits, regression, *quality = (
            torch.cat([permute_to_N_HWA_K(x, x.shape[1]) for x in maps], 1).float()
            for maps in output
        )
        return Predictions(logits, regression, quality[0].squeeze(-1) if quality else None)

    def in_image_mask(self, locations: Locations, sizes: Tensor, maps: list[Tensor]) -> Tensor:
        """Mark the locations that belong to each image's own frame, see `pad_size_divisor`.

        Images of a batch are padded to a common size. The other locations lie in that padding.

        Args:
            locations: anchors and levels.
            sizes: (N, 2) height and width before padding, in pixels.
            maps: a map (N, C, H, W) of each level.

        Returns:
            (N, R) bool.
        """
        if not self.pad_size_divisor:
            return sizes.new_ones(len(sizes), len(locations.anchors), dtype=torch.bool)
        frame = -(-sizes // self.pad_size_divisor) * self.pad_size_divisor  # rounded up
        # A cell belongs to the frame if the cell's top-left corner does. The place of the anchor
        # within the cell does not matter.
        corners = [
            stride * torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in x.shape[-2:]))
            for x, stride in zip(maps, self.strides, strict=True)
        ]
        return (torch.cat(corners) < frame[:, None]).all(-1)

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute the losses; `DenseDetector.forward` calls this in training.

        Args:
            images: not used.
            features: a map (N, C, H, W) of each level.
            predictions: outputs of the head, see `predictions`.
            gt_instances: ground truth of each image: gt_boxes and gt_classes.

        Returns:
            see `losses`.
        """
        locations = self.locations(features)
        targets = Targets.from_instances(gt_instances, self.device)
        in_image = self.in_image_mask(locations, targets.sizes, features)
        # Half precision is too coarse for sums over whole maps and logarithms of probabilities.
        with torch.autocast(self.device.type, enabled=False):
            return self.losses(locations, self.predictions(predictions), targets, in_image)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        """Detect objects; `DenseDetector.forward` calls this at inference.

        Args:
            images: the batch; only `image_sizes` is used.
            features: a map (N, C, H, W) of each level.
            predictions: outputs of the head, see `predictions`.

        Returns:
            detections of each image: pred_boxes in pixels of the input, scores and pred_classes.
        """
        locations, outputs = self.locations(features), self.predictions(predictions)
        probabilities, quality = self.scores(outputs)
        rank = probabilities.amax(-1)
        if self.rank_by_quality and quality is not None:
            rank = rank * quality
        # Keep the best locations of each level. The score threshold comes later.
        chosen, start = [], 0
        for level in rank.split(locations.counts, 1):
            count = level.shape[1]
            # In tracing, the count is a tensor, and min() would make a constant of it.
            if isinstance(count, Tensor):
                k = count.clamp(max=self.test_topk_candidates)
            else:
                k = min(self.test_topk_candidates, count)
            chosen.append(level.topk(k)[1] + start)
            start += count
        results = []
        for i, (best, size) in enumerate(
            zip(torch.cat(chosen, 1), images.image_sizes, strict=True)
        ):
            kept = Locations(locations.anchors[best], locations.strides[best], locations.counts)
            boxes = Boxes(self.decode(kept, outputs.regression[i, best][None])[0])
            # Boxes are clipped before NMS. Detectron2's own detectors clip them in postprocessing.
            boxes.clip(size)
            p = probabilities[i, best]
            row, classes = (p > self.test_score_thresh).nonzero().unbind(1)
            scores = (
                p[row, classes] if quality is None else (p * quality[i, best, None])[row, classes]
            )
            detections = Instances(size, pred_boxes=boxes[row], scores=scores, pred_classes=classes)
            keep = batched_nms(detections.pred_boxes.tensor, scores, classes, self.test_nms_thresh)
            results.append(detections[keep[: self.max_detections_per_image]])
        return results
