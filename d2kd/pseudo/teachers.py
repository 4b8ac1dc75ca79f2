"""Detectors that label."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..data.manifest import Image
from ..files import sha256_of_file
from ..loading import FrozenDetector, predictions_in_fp32
from .fingerprint import fingerprint
from .records import Found

__all__ = ["LabelTeacher", "class_names"]

logger = logging.getLogger(__name__)


class LabelTeacher(FrozenDetector):
    """A frozen detector with its class list, its scale and its own inference.

    Args:
        model, weights, input_format: see `d2kd.Teacher`. Any detector whose outputs are
            Detectron2's will do.
        classes: names of the teacher's classes in the order of its outputs, or a registered
            dataset that has them.
        categories: teacher class -> student class, or None for a class that is left out; see
            `CategoryMap`. Default: classes of the same name.
        min_size_test, max_size_test: pixels of the shorter side that an image is resized to, unless
            the longer one would exceed its limit, as Detectron2 tests. min_size_test=0: no
            resizing.
        score_floor: in [0, 1). What scores less is not kept, so no bar can be lower later.
        max_detections: of each image, the surest.
        batch_size: images in one forward pass. They are padded to the same size as each would be
            alone.
        dtype: autocast precision, "bfloat16" or "float16"; None for fp32.
        bars: this teacher's, see `d2kd.pseudo.thresholds`; None for those of all teachers.

    Raises:
        FileNotFoundError: no file or zoo entry of that name.
        ValueError: weights or classes do not fit the detector, or a field has an impossible value.
    """

    def __init__(
        self,
        model: nn.Module | str,
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
        bars: Any = None,
    ):
        if not 0 <= score_floor < 1:
            raise ValueError(f"score_floor: expected 0 <= score_floor < 1, found {score_floor}")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_detections", max_detections, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, found {value}")
        self.classes = class_names(classes)
        self.categories = dict(categories) if categories is not None else None
        self.score_floor = score_floor
        self.max_detections = max_detections
        self.batch_size = batch_size
        self.bars = bars

        super().__init__(model, weights, input_format=input_format, dtype=dtype)
        shortest, longest = self.test_size or (800, 1333)
        self.min_size_test = shortest if min_size_test is None else min_size_test
        self.max_size_test = longest if max_size_test is None else max_size_test
        for name, value, least in (
            ("min_size_test", self.min_size_test, 0),
            ("max_size_test", self.max_size_test, max(self.min_size_test, 1)),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, found {value}")
        self._sha256 = None
        if self.weights is not None:
            self._sha256 = sha256_of_file(PathManager.get_local_path(self.weights))
        _check_classes(self.model, self.classes)
        _set_thresholds(self.model, score_floor, max_detections)
        if dtype and isinstance(self.model, DenseDetector):
            self.model.head.register_forward_hook(predictions_in_fp32)
        self._fingerprint = fingerprint(self.model)

    def __repr__(self) -> str:
        return f"LabelTeacher({type(self.model).__name__}, {len(self.classes)} classes)"

    def settings(self) -> dict[str, Any]:
        """All that alters its raw predictions, for the key of a `RawCache`."""
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
    def __call__(self, images: Sequence[Image], pixels: Sequence[Tensor]) -> list[Found]:
        """The detector's own inference, NMS included.

        Args:
            images: with height and width of their files, to which boxes are scaled.
            pixels: (3, H, W) of each, raw in [0, 255], in `input_format`, resized.

        Raises:
            ValueError: it finds classes that are not in the list, or boxes that are not finite.
        """
        inputs = [
            {"image": p, "height": i.height, "width": i.width}
            for i, p in zip(images, pixels, strict=True)
        ]
        with self.autocast():
            try:
                outputs = self.model(inputs)
            except AssertionError as e:  # of Boxes.clip
                if "NaN" not in str(e):
                    raise
                names = ", ".join(i.file_name for i in images)
                raise ValueError(
                    f"{self!r}: expected finite boxes, found others in one of {names}. "
                    f"{'Set dtype=None. ' if self.dtype else ''}Do weights and config agree?"
                ) from e
        return [self._found(i, y["instances"]) for i, y in zip(images, outputs, strict=True)]

    def _found(self, image: Image, instances) -> Found:
        boxes = instances.pred_boxes.tensor.float().cpu().numpy()
        scores = instances.scores.float().cpu().numpy()
        classes = instances.pred_classes.cpu().numpy().astype(np.int64)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ValueError(
                f"{self!r}: expected classes 0 to {len(self.classes) - 1}, found "
                f"{classes.max()} in {image.file_name}. Give the names of all its classes."
            )
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > self.score_floor][: self.max_detections]
        limits = np.array([image.width, image.height] * 2, np.float32)
        return Found(boxes[order].clip(0, limits), scores[order], classes[order])


def class_names(classes: Sequence[str] | str) -> tuple[str, ...]:
    """A class list as it is given, or that of a registered dataset.

    Raises:
        ValueError: the dataset is unknown or has no class list, or a name comes twice.
    """
    if isinstance(classes, str):
        name = classes
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"classes: expected a list of names or a dataset registered with Detectron2, found "
                f"{name!r}."
            )
        if not hasattr(MetadataCatalog.get(name), "thing_classes"):
            DatasetCatalog.get(name)  # some datasets know their classes only once they are loaded
        classes = MetadataCatalog.get(name).get("thing_classes", ())
        if not classes:
            raise ValueError(f"classes: expected a dataset with thing_classes, {name!r} has none.")
    classes = tuple(str(c) for c in classes)
    twice = sorted({c for c in classes if classes.count(c) > 1})
    if twice or not classes:
        raise ValueError(f"classes: expected names that differ, found {', '.join(twice) or 'none'}")
    return classes


def _check_classes(model: nn.Module, classes: Sequence[str]) -> None:
    for owner in (model, getattr(model, "roi_heads", None)):
        count = getattr(owner, "num_classes", None)
        if isinstance(count, int):
            if count != len(classes):
                raise ValueError(
                    f"classes of {type(model).__name__}: expected the names of its {count} "
                    f"classes, found {len(classes)} ({', '.join(classes[:5])} ...)."
                )
            return


def _set_thresholds(model: nn.Module, score_floor: float, max_detections: int) -> None:
    """Have a detector return all above the floor, wherever its architecture keeps the setting."""
    known = False
    for module in model.modules():
        if hasattr(module, "test_score_thresh"):
            module.test_score_thresh, known = score_floor, True
        for name in ("max_detections_per_image", "test_topk_per_image"):
            if hasattr(module, name):
                setattr(module, name, max_detections)
    heads = getattr(model, "roi_heads", None)
    for name in ("mask_on", "keypoint_on"):  # only boxes are wanted
        if hasattr(heads, name):
            setattr(heads, name, False)
    if not known:
        logger.warning(
            "%s has no test_score_thresh: it keeps its own where that is above %g.",
            type(model).__name__,
            score_floor,
        )
