"""A trained detector that takes pictures and gives boxes.

Detectron2's `DefaultPredictor` does this for yacs configs. It has nothing for LazyConfigs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf

from ..data.pixels import read_pixels
from ..frozen import FrozenDetector
from ..loading import load_student_config
from ..recipes import config_path
from ..values import check_device

__all__ = ["Detector", "student_node"]


class Detector(FrozenDetector):
    """Detects on one picture at a time, as the config evaluates.

    A picture is read in the config's channel order and goes through the augmentations of
    `dataloader.test.mapper`. Neither the datasets of the config nor the ImageNet weights of its
    backbone have to exist.

    Args:
        config: path of a LazyConfig, or the name of one of d2kd's, with `model` and
            `dataloader.test.mapper`, or path of a yacs config. Of a distiller's config, the student
            is built and the teacher is not.
        weights: path or URL of the detector's checkpoint, of a distiller's checkpoint, or of a file
            by `save_student`. It is loaded strictly.
        classes: names of the classes, in the order of `pred_classes`.
        device: default: the GPU if there is one, else the CPU.

    Attributes:
        model: the Detectron2 detector, in evaluation mode.
        classes: names of the classes; empty if none were given.
        input_format: channel order that the model takes, "BGR" or "RGB".

    Raises:
        FileNotFoundError: the config or the weights do not exist.
        ImportError: the backbone needs timm, which is not installed.
        ValueError: the weights do not fit the config, or the config lacks a section.
    """

    def __init__(
        self,
        config: str | os.PathLike,
        weights: str | os.PathLike,
        *,
        classes: Sequence[str] = (),
        device: torch.device | str | None = None,
    ):
        path = config_path(os.fspath(config))
        cfg = load_student_config(path)
        mapper = OmegaConf.select(cfg, "dataloader.test.mapper") if "model" in cfg else None
        if mapper is None or "augmentations" not in mapper:
            raise ValueError(
                f"{path}: expected a LazyConfig with `model` and "
                f"`dataloader.test.mapper.augmentations`, or a yacs config, found another file."
            )
        # The order is the test mapper's. FrozenDetector on its own would not know it of a node.
        super().__init__(
            student_node(cfg), os.fspath(weights), input_format=mapper.get("image_format")
        )
        self.augmentations = T.AugmentationList(
            [instantiate(node) for node in mapper.augmentations]
        )
        self.classes = tuple(classes)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device("device", device)
        self.to(device)

    def __repr__(self) -> str:
        return f"Detector({type(self.model).__name__}, {len(self.classes)} classes)"

    def make_input(
        self, image: str | os.PathLike | np.ndarray, *, image_format: str = "BGR"
    ) -> dict[str, Any]:
        """The input dict of Detectron2's detectors for one picture; see `__call__`.

        Returns:
            "image": (3, h, w) uint8 in the order `input_format`, resized; "height" and "width" of
            the picture before that, in pixels.
        """
        if not isinstance(image, np.ndarray):
            pixels = read_pixels(image, self.input_format)
        elif image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image: expected a path or an array (height, width, 3) of uint8, found an array "
                f"{image.shape} of {image.dtype}"
            )
        elif image_format not in ("BGR", "RGB"):
            raise ValueError(f"image_format: expected 'BGR' or 'RGB', found {image_format!r}")
        else:
            pixels = image if image_format == self.input_format else image[..., ::-1]
        height, width = pixels.shape[:2]
        augmented = T.AugInput(np.ascontiguousarray(pixels))
        self.augmentations(augmented)
        channels_first = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        return dict(image=torch.as_tensor(channels_first), height=height, width=width)

    @torch.no_grad()
    def __call__(
        self, image: str | os.PathLike | np.ndarray, *, image_format: str = "BGR"
    ) -> Instances:
        """Detect the objects of one picture.

        Args:
            image: path of a picture, or its pixels, (height, width, 3), uint8.
            image_format: channel order of pixels given as an array: "BGR", as OpenCV reads them, or
                "RGB". The order of a file is known.

        Returns:
            Detectron2's `Instances` on the CPU, by descending score, with `pred_boxes` (x1y1x2y2,
            in pixels of the picture), `scores` in [0, 1] and `pred_classes`, indices of `classes`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the array has another shape or type, or see `d2kd.data.pixels.read_pixels`.
        """
        (output,) = self.model([self.make_input(image, image_format=image_format)])
        return output["instances"].to("cpu")


def student_node(cfg: DictConfig) -> DictConfig:
    """The node of the detector, or of a distiller's student."""
    node = cfg.model.get("student", cfg.model)
    if isinstance(node, str):
        return student_node(load_student_config(node, cfg.model.get("setup")))
    return node
