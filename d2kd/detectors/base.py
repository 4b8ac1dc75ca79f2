"""What dense detectors with one prediction per location share.

Shapes: N images, L levels, K classes, G boxes, R = locations of all levels: level by level, row by
row. Boxes are x1y1x2y2 in pixels of the padded input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..signature import merge_signature
from ..targets import Targets
from .head import PointHead

__all__ = ["Locations", "PointDetector", "Predictions"]


class Locations(NamedTuple):
    """Where the predictions are made.

    Attributes:
        anchors: (R, 4) pixels.
        strides: (R,) pixels, of the level that a location belongs to.
        counts: locations of each level; their sum is R.
    """

    anchors: Tensor
    strides: Tensor
    counts: tuple[int, ...]

    @property
    def centers(self) -> Tensor:
        """(R, 2) x, y of the anchors' centres, in pixels."""
        return (self.anchors[:, :2] + self.anchors[:, 2:]) / 2


class Predictions(NamedTuple):
    """What the head says at each location, fp32.

    Attributes:
        logits: (N, R, K) class logits.
        regression: (N, R, D) in the detector's own coding.
        quality: (N, R) logits of the IoU, centerness or objectness branch; None without one.
    """

    logits: Tensor
    regression: Tensor
    quality: Tensor | None


class PointDetector(DenseDetector):
    """A Detectron2 `DenseDetector` with one prediction at each location of each level.

    A detector is a subclass that says how it decodes boxes, which locations are positive, its
    losses and its scores.
    """

    anchor_scale = 8
    """Side of the default anchors, in strides."""

    padding = 32
    """Locations beyond an image's size rounded up to this many pixels are neither candidates nor
    in the loss; 0: all are."""

    box_channels = 4
    """Channels of the box regression."""

    has_quality = True
    """Whether the head has a quality branch."""

    rank_by_quality = False
    """Whether the first choice of locations at inference looks at probability times quality."""

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        merge_signature(cls)

    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        num_classes: int,
        anchor_generator: nn.Module | None = None,
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
            head: maps the list of maps to lists over levels: class logits (N, K, H, W), box
                regression (N, D, H, W) and perhaps quality logits (N, 1, H, W), see `PointHead`.
            num_classes: K.
            anchor_generator: one anchor at each location; default: a square of `anchor_scale`
                strides around the cell's corner (stride * column, stride * row).
            head_in_features: names of the levels that the head sees; default: all, finest first.
            pixel_mean, pixel_std: of the channels in the order of `input_format`.
            input_format: channel order of the images, "BGR" or "RGB".
            test_score_thresh: a class must be more probable than this, before its probability is
                multiplied by the quality.
            test_topk_candidates: locations kept at each level before that threshold.
            test_nms_thresh: IoU above which of two boxes of a class the less sure one goes.
            max_detections_per_image: detections kept after NMS.

        Raises:
            ValueError: the anchors do not fit the levels, or the head does not fit.
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
            widths = {shapes[level].channels for level in self.head_in_features}
            branch = {True: "a quality branch", False: "no quality branch"}
            for expected, found in (
                (f"{len(self.head_in_features)} levels", f"{len(head.scales)} levels"),
                *(
                    (f"{n} input channels", f"{head.cls_subnet[0].in_channels} input channels")
                    for n in sorted(widths)
                ),
                (f"{num_classes} classes", f"{head.cls_score.out_channels} classes"),
                (
                    f"{self.box_channels} box channels",
                    f"{head.bbox_pred.out_channels} box channels",
                ),
                (branch[self.has_quality], branch[head.quality is not None]),
            ):
                if expected != found:
                    raise ValueError(
                        f"{type(self).__name__}: expected a head with {expected}, found {found}. "
                        f"Change the fields of its head."
                    )
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        """Box regression (N, R, D) to boxes (N, R, 4) in pixels; differentiable."""
        raise NotImplementedError

    def assign(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> Tensor:
        """Which box a location is positive for.

        Args:
            inside: (N, R) bool, see `inside`.

        Returns:
            (N, R) long, index of the box in [0, G), or -1; no gradient.
        """
        raise NotImplementedError

    def losses(
        self, locations: Locations, predictions: Predictions, targets: Targets, inside: Tensor
    ) -> dict[str, Tensor]:
        """Loss name -> scalar, weighted."""
        raise NotImplementedError

    def scores(self, predictions: Predictions) -> tuple[Tensor, Tensor | None]:
        """Class probabilities (N, R, K), and the quality (N, R) in [0, 1] by which detections are
        multiplied; None without one."""
        quality = predictions.quality
        return predictions.logits.sigmoid(), None if quality is None else quality.sigmoid()

    def locations(self, maps: list[Tensor]) -> Locations:
        """The locations of the maps (N, C, H, W), one of each level."""
        anchors = Boxes.cat(self.anchor_generator(maps)).tensor
        counts = tuple(x.shape[-2] * x.shape[-1] for x in maps)  # tensors while it is traced
        strides = [
            anchors.new_full((count,), stride)
            for count, stride in zip(counts, self.strides, strict=True)
        ]
        return Locations(anchors, torch.cat(strides), counts)

    def predictions(self, output: tuple[list[Tensor], ...]) -> Predictions:
        """Flatten what the head says."""
        logits, regression, *quality = (
            torch.cat([permute_to_N_HWA_K(x, x.shape[1]) for x in maps], 1).float()
            for maps in output
        )
        return Predictions(logits, regression, quality[0].squeeze(-1) if quality else None)

    def inside(self, locations: Locations, sizes: Tensor, maps: list[Tensor]) -> Tensor:
        """Which locations belong to an image and not to what others of the batch pad it with.

        Args:
            sizes: (N, 2) height and width before padding, in pixels.
            maps: (N, C, H, W) of each level.

        Returns:
            (N, R) bool.
        """
        if not self.padding:
            return sizes.new_ones(len(sizes), len(locations.anchors), dtype=torch.bool)
        frame = -(-sizes // self.padding) * self.padding
        # A cell is inside if its near corner is, wherever in the cell the anchor sits.
        corners = [
            stride * torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in x.shape[-2:]))
            for x, stride in zip(maps, self.strides, strict=True)
        ]
        return (torch.cat(corners) < frame[:, None]).all(-1)

    def forward_training(self, images, features, predictions, gt_instances) -> dict[str, Tensor]:
        locations = self.locations(features)
        targets = Targets.from_instances(gt_instances, self.device)
        inside = self.inside(locations, targets.sizes, features)
        # Sums over whole maps and logs of probabilities do not go with half precision.
        with torch.autocast(self.device.type, enabled=False):
            return self.losses(locations, self.predictions(predictions), targets, inside)

    def forward_inference(self, images, features, predictions) -> list[Instances]:
        """Detections of each image, in pixels of the input: pred_boxes, scores, pred_classes."""
        locations, predictions = self.locations(features), self.predictions(predictions)
        probabilities, quality = self.scores(predictions)
        rank = probabilities.amax(-1)
        if self.rank_by_quality and quality is not None:
            rank = rank * quality
        # The best locations of each level, before anything is thresholded.
        chosen, start = [], 0
        for level in rank.split(locations.counts, 1):
            k = min(self.test_topk_candidates, level.shape[1])
            chosen.append(level.topk(k)[1] + start)
            start += level.shape[1]
        results = []
        for i, (best, size) in enumerate(
            zip(torch.cat(chosen, 1), images.image_sizes, strict=True)
        ):
            where = Locations(locations.anchors[best], locations.strides[best], locations.counts)
            boxes = Boxes(self.decode(where, predictions.regression[i, best][None])[0])
            # Clipped before NMS; Detectron2's detectors leave it to the postprocessing.
            boxes.clip(size)
            p = probabilities[i, best]
            row, classes = (p > self.test_score_thresh).nonzero().unbind(1)
            scores = (
                p[row, classes] if quality is None else (p * quality[i, best, None])[row, classes]
            )
            found = Instances(size, pred_boxes=boxes[row], scores=scores, pred_classes=classes)
            keep = batched_nms(found.pred_boxes.tensor, scores, classes, self.test_nms_thresh)
            results.append(found[keep[: self.max_detections_per_image]])
        return results
