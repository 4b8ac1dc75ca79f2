"""A detector in an ONNX file, with the interface of Detectron2's detectors."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .packages import require
from .tracing import BATCH_OUTPUTS, OUTPUTS

__all__ = ["OnnxDetector"]


class OnnxDetector:
    """Runs a file that `d2kd export` wrote. It can be given to Detectron2's evaluators.

    Args:
        path: the .onnx file.
        providers: of onnxruntime, the preferred one first; default: the CPU.
        threads: number of threads for one operation; 0: as many as onnxruntime chooses.

    Attributes:
        classes: names of the classes, in the order of `pred_classes`; empty if the file has none.
        input_format: channel order of the input, "BGR" or "RGB".
        batch: number of images that the file takes at once; None for one image without that axis.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package onnxruntime is missing.
        ValueError: onnxruntime cannot run the file, or it has other inputs or outputs.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
        threads: int = 0,
    ):
        runtime = require("onnxruntime")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"OnnxDetector: expected an .onnx file, found none at '{path}'")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(
                os.fspath(path), options, providers=list(providers)
            )
        except Exception as error:  # of classes that only onnxruntime's C++ part has
            raise ValueError(
                f"{path}: expected an ONNX file that onnxruntime can run, found: {error}"
            ) from error
        names = [x.name for x in self.session.get_inputs() + self.session.get_outputs()]
        if names not in (["image", *OUTPUTS], ["image", *BATCH_OUTPUTS]):
            raise ValueError(
                f"{path}: expected the input image and the outputs boxes, scores and classes, "
                f"found {', '.join(names)}. Write the file with d2kd export."
            )
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.classes = tuple(json.loads(metadata.get("classes", "[]")))
        self.input_format = json.loads(metadata.get("input_format", '"BGR"'))
        shape = self.session.get_inputs()[0].shape
        self.batch = shape[0] if len(shape) == 4 else None

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect on images. A file for N images gets images of one size together.

        Args:
            batched_inputs: as for Detectron2's detectors: "image", uint8 (3, h, w), resized and in
                the order `input_format`, and maybe "height" and "width" of the picture.

        Returns:
            for each image a dict with "instances", with boxes in pixels of the picture where height
            and width are given, else of the image.
        """
        images = [_to_numpy(one["image"]) for one in batched_inputs]
        groups = defaultdict(list)
        for i, image in enumerate(images):
            groups[image.shape].append(i)
        found: dict[int, Instances] = {}
        for group in groups.values():
            for start in range(0, len(group), self.batch or 1):
                chunk = group[start : start + (self.batch or 1)]
                found |= zip(chunk, self._detect([images[i] for i in chunk]), strict=True)
        return [{"instances": _in_picture(found[i], one)} for i, one in enumerate(batched_inputs)]

    def _detect(self, images: list[np.ndarray]) -> list[Instances]:
        """Run the file once on images of one size, no more than it takes."""
        size = images[0].shape[-2:]
        if self.batch is None:
            outputs = [self._run(images[0])]
        else:
            full = images + images[-1:] * (self.batch - len(images))
            *values, index = self._run(np.stack(full))
            outputs = [[x[index == i] for x in values] for i in range(len(images))]
        return [
            Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for boxes, scores, classes in outputs
        ]

    def _run(self, image: np.ndarray) -> list[Tensor]:
        return [torch.as_tensor(x) for x in self.session.run(None, {"image": image})]


def _to_numpy(image: Any) -> np.ndarray:
    array = np.ascontiguousarray(torch.as_tensor(image).cpu().numpy())
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(
            f"image: expected uint8 of shape (3, height, width), found {array.dtype} of shape "
            f"{array.shape}."
        )
    return array


def _in_picture(found: Instances, one: dict[str, Any]) -> Instances:
    """With boxes in pixels of the picture, where the input says its size."""
    height, width = found.image_size
    return detector_postprocess(found, one.get("height", height), one.get("width", width))
