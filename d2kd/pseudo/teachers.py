"""Detectors that label images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from torch import Tensor, nn

from ..data.classes import classes_of_dataset
from ..data.manifest import Image
from ..files import sha256_of_file
from ..frozen import FrozenDetector, predictions_in_fp32
from ..matching import Detections
from ..resolution import fit_into_square
from ..values import check_number
from .fingerprint import fingerprint
from .thresholds import ThresholdRule

__all__ = ["LabelTeacher", "class_names", "set_output_limits"]

logger = logging.getLogger(__name__)

_TEST_SIZE = (800, 1333)  # of a detector whose config does not say one; Detectron2's default


class LabelTeacher(FrozenDetector):
    """A frozen detector with its class names and its test size, which labels by its own inference.

    Args:
        model, weights, input_format, dtype, setup: see `d2kd.frozen.FrozenDetector`. Every
            detector that returns Detectron2's outputs with upright boxes is supported.
        classes: names of the teacher's classes, in the order of its outputs, or a registered
            dataset that has these classes.
        categories: teacher class -> student class, or None to drop a class; see `CategoryMap`.
            Default: classes of the same name.
        min_size_test, max_size_test: images are resized as in Detectron2's tests: the shorter side
            to `min_size_test` pixels, or less where the longer side would exceed `max_size_test`
            pixels. min_size_test=0 means no resizing. Default (None): the test size of the
            detector's config. That is INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST of a yacs config, and
            the ResizeShortestEdge in `dataloader.test.mapper.augmentations` of a LazyConfig (an
            empty list means no resizing). Where the config does not say a size, for example
            because `model` is a node of `L(...)`, it is Detectron2's default, 800 and 1333. Images
            of a detector that pads to a square (ViTDet) are resized to fit into this square.
        score_floor: boxes that do not score more are not kept, in [0, 1). Thresholds below the
            floor have no effect, because raw predictions are kept above it only.
        max_detections: number of boxes with the highest scores to keep in each image.
        batch_size: images in one forward pass. Only images of the same padded size share a batch,
            so that each is padded as it would be alone.
        thresholds: the thresholds of this teacher, see `d2kd.pseudo.thresholds`. Default: the
            thresholds of the config, `labels.thresholds`.

    Raises:
        FileNotFoundError: there is no file and no model-zoo entry of that name.
        ValueError: the weights or the classes do not fit the detector, or an argument has an
            impossible value.
    """

    def __init__(
        self,
        model: nn.Module | DictConfig | str,
        weights: str | None,
        classes: Sequence[str] | str,
        *,
        categories: Mapping[str, str | None] | None = None,
        input_format: str | None = None,
        min_size_test: int | None = None,
        max_size_test: int | None = None,
        score_floor: float = 0.05,
        max_detections: int = 300,
        batch_size: int = 8,
        dtype: str | None = None,
        setup: Callable[[Any], Any] | str | None = None,
        thresholds: ThresholdRule | None = None,
    ):
        check_number("score_floor", score_floor, below=1)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_detections", max_detections, 1),
        ):
            check_number(name, value, least=least, whole=True)
        self.classes = class_names(classes)
        self.categories = dict(categories) if categories is not None else None
        self.score_floor = score_floor
        self.max_detections = max_detections
        self.batch_size = batch_size
        self.thresholds = thresholds
        super().__init__(model, weights, input_format=input_format, dtype=dtype, setup=setup)
        shortest, longest = self.test_size or _TEST_SIZE
        if self.test_size is None and min_size_test is None:
            # A teacher at another size than its own finds little, and says so with high scores.
            logger.warning(
                "%s: its config does not say at which size it is tested: images are resized to %d "
                "pixels, and at most %d. Set min_size_test and max_size_test if it was trained "
                "with others, or give the path of its config as `model`.",
                *(self.source, shortest, longest),
            )
        self.min_size_test = shortest if min_size_test is None else min_size_test
        self.max_size_test = longest if max_size_test is None else max_size_test
        for name, value, least in (
            ("min_size_test", self.min_size_test, 0),
            ("max_size_test", self.max_size_test, max(self.min_size_test, 1)),
        ):
            check_number(name, value, least=least, whole=True)
        if self.square_size and self.max_size_test > self.square_size:
            logger.info(
                "%s pads images to a square of %d pixels: images are resized to fit into it.",
                *(self.source, self.square_size),
            )
            self.max_size_test = self.square_size
            self.min_size_test = min(self.min_size_test, self.square_size)
        self._sha256: str | None = None
        if self.weights is not None:
            self._sha256 = sha256_of_file(PathManager.get_local_path(self.weights))
        _check_classes(self.model, self.classes)
        set_output_limits(self.model, score_floor, max_detections, len(self.classes))
        if dtype and isinstance(self.model, DenseDetector):
            self.model.head.register_forward_hook(predictions_in_fp32)
        self._fingerprint = fingerprint(self.model)
        size = f"{self.min_size_test} to {self.max_size_test} pixels"
        logger.info(
            "%s labels images of %s in %s",
            *(self.source, size if self.min_size_test else "their own size", self.input_format),
        )

    def __repr__(self) -> str:
        return f"LabelTeacher({type(self.model).__name__}, {len(self.classes)} classes)"

    def settings(self) -> dict[str, Any]:
        """All settings that change its raw predictions, for the key of a `RawCache`."""
        return dict(
            weights=self._sha256,
            model=self._fingerprint,
            input_format=self.input_format,
            min_size_test=self.min_size_test,
            max_size_test=self.max_size_test,
            score_floor=self.score_floor,
            max_detections=self.max_detections,
            batch_size=self.batch_size,
            dtype=None if self.dtype is None else str(self.dtype).removeprefix("torch."),
        )

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], pixels: Sequence[Tensor]) -> list[Detections]:
        """Run the detector's own inference, including NMS.

        Args:
            images: the N images, with height and width of their files.
            pixels: one (3, H, W) tensor of each image: raw pixels in [0, 255], in the channel order
                `input_format`, resized.

        Returns:
            for each image, boxes in pixels of its file, inside the image, by descending score, with
            the teacher's own class indices.

        Raises:
            ValueError: the detector found a class index that is not in `classes`, or boxes that are
                not finite or not upright.
        """
        inputs = [
            # Images may still exceed the square of a ViTDet if they are not resized
            # (min_size_test=0). The detector maps its boxes back to height and width.
            {
                "image": fit_into_square(p, self.square_size),
                "height": i.height,
                "width": i.width,
            }
            for i, p in zip(images, pixels, strict=True)
        ]
        with self.autocast():
            try:
                outputs = self.model(inputs)
            except AssertionError as e:  # raised by Boxes.clip
                if "NaN" not in str(e):
                    raise
                names = ", ".join(i.file_name for i in images)
                raise ValueError(
                    f"{self!r}: expected finite boxes, found others in one of {names}. "
                    f"{'Set dtype=None. ' if self.dtype else ''}Check that the weights belong to "
                    f"this config."
                ) from e
        return [self._convert(i, y["instances"]) for i, y in zip(images, outputs, strict=True)]

    def _convert(self, image: Image, instances: Instances) -> Detections:
        boxes = instances.pred_boxes.tensor.float().cpu().numpy()
        if boxes.shape[1] != 4:
            raise ValueError(
                f"{self!r}: expected upright boxes (x1, y1, x2, y2), found boxes of "
                f"{boxes.shape[1]} numbers in {image.file_name}. d2kd does not support rotated "
                f"boxes."
            )
        scores = instances.scores.float().cpu().numpy()
        classes = instances.pred_classes.cpu().numpy().astype(np.int64)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ValueError(
                f"{self!r}: expected classes 0 to {len(self.classes) - 1}, found "
                f"{classes.max()} in {image.file_name}. Give the names of all classes of the "
                f"teacher."
            )
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > self.score_floor][: self.max_detections]
        limits = np.array([image.width, image.height] * 2, np.float32)
        return Detections(
            boxes=boxes[order].clip(0, limits), scores=scores[order], classes=classes[order]
        )


def class_names(classes: Sequence[str] | str) -> tuple[str, ...]:
    """The class names of a list, or of a dataset that is registered with Detectron2.

    Raises:
        ValueError: the dataset is unknown or has no class names, or a name occurs twice.
    """
    if isinstance(classes, str):
        name = classes
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"classes: expected a list of names or a dataset registered with Detectron2, found "
                f"{name!r}."
            )
        classes = classes_of_dataset(name)
        if not classes:
            raise ValueError(
                f"classes: expected a dataset with thing_classes, found none of {name!r}."
            )
    classes = tuple(str(c) for c in classes)
    repeated = sorted({c for c in classes if classes.count(c) > 1})
    if repeated or not classes:
        raise ValueError(
            f"classes: expected names that differ, found {', '.join(repeated) or 'none'}"
        )
    return classes


def _check_classes(model: nn.Module, classes: Sequence[str]) -> None:
    """Compare the number of names with the number of classes of the detector, if it has one."""
    for owner in (model, getattr(model, "roi_heads", None)):
        count = getattr(owner, "num_classes", None)
        if isinstance(count, int):
            if count != len(classes):
                raise ValueError(
                    f"classes of {type(model).__name__}: expected the names of its {count} "
                    f"classes, found {len(classes)} ({', '.join(classes[:5])} ...)."
                )
            return


def set_output_limits(
    model: nn.Module, score_floor: float, max_detections: int, num_classes: int
) -> None:
    """Make a detector return all boxes above the floor. Architectures keep this setting in
    different modules."""
    known = False
    queries: Any = getattr(model, "num_queries", None)
    if queries is not None:
        # Detectors with queries fail if they are asked for more boxes than they have.
        max_detections = min(max_detections, queries * max(num_classes, 1))
    for module in model.modules():
        if hasattr(module, "test_score_thresh"):
            setattr(module, "test_score_thresh", score_floor)  # noqa: B010, not a tensor or module
            known = True
        for name in ("max_detections_per_image", "test_topk_per_image"):
            if hasattr(module, name):
                setattr(module, name, max_detections)
    heads = getattr(model, "roi_heads", None)
    for name in ("mask_on", "keypoint_on"):  # labels are boxes: skip the other heads
        if hasattr(heads, name):
            setattr(heads, name, False)
    if not known:
        logger.warning(
            "%s has no test_score_thresh: boxes below its own threshold are missing if that is "
            "above %g.",
            type(model).__name__,
            score_floor,
        )
