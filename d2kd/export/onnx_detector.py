"""A detector in an ONNX file, with the interface of Detectron2's detectors."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from .packages import require

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

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package onnxruntime is missing.
        ValueError: the file has other inputs or outputs.
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
        self.session = runtime.InferenceSession(os.fspath(path), options, providers=list(providers))
        names = [x.name for x in self.session.get_inputs() + self.session.get_outputs()]
        if names != ["image", "boxes", "scores", "classes"]:
            raise ValueError(
                f"{path}: expected the input image and the outputs boxes, scores and classes, "
                f"found {', '.join(names)}. Write the file with d2kd export."
            )
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.classes = tuple(json.loads(metadata.get("classes", "[]")))
        self.input_format = json.loads(metadata.get("input_format", '"BGR"'))

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect on images, one after the other.

        Args:
            batched_inputs: as for Detectron2's detectors: "image", uint8 (3, h, w), resized and in
                the order `input_format`, and maybe "height" and "width" of the picture.

        Returns:
            for each image a dict with "instances", with boxes in pixels of the picture where height
            and width are given, else of the image.
        """
        return [{"instances": self._detect(one)} for one in batched_inputs]

    def _detect(self, one: dict[str, Any]) -> Instances:
        image = np.ascontiguousarray(torch.as_tensor(one["image"]).cpu().numpy(), dtype=np.uint8)
        boxes, scores, classes = map(torch.as_tensor, self.session.run(None, {"image": image}))
        size = image.shape[-2:]
        found = Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        return detector_postprocess(found, one.get("height", size[0]), one.get("width", size[1]))
