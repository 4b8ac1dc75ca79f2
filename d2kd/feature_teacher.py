"""A network of timm or torchvision as a teacher: features without a detector."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor

from .backbones import LibraryBackbone, PatchBackbone, is_patch_network, pixel_statistics
from .backbones.weights import check_file
from .readers import Reader, get_reader
from .teacher import Teacher
from .values import check_number

__all__ = ["FeatureNetwork", "FeatureReader", "FeatureTeacher"]

logger = logging.getLogger(__name__)


class FeatureTeacher(Teacher):
    """A frozen network of timm or torchvision, without a detector, that shows its features.

    A plain vision transformer (ViT, DINOv2, DINOv3) has one level, "patches", with one cell for
    each patch. Other networks (ConvNeXt, ResNet) have the levels of `LibraryBackbone`, "res2" to
    "res5". All methods on features work with it. Methods that need a head are refused when the
    distiller is built.

    Args:
        backbone: "timm/<model>" or "torchvision/<model>", such as
            "timm/vit_small_patch16_dinov3" or "timm/convnext_tiny.dinov3_lvd1689m".
        weights: path of a file with the library's own tensor names, loaded strictly; True for the
            weights that the library downloads; None for random weights.
        out_features: levels of a network that is no plain vision transformer; see
            `LibraryBackbone`, whose default this is, too.
        scale: the images are resized by this factor for the teacher. A cell of the teacher then
            covers 1 / `scale` times as many pixels of the student. For example, scale=2 gives
            patches of 16 pixels the stride 8. Default: 1, or, if the stride is no power of two, the
            factor that makes it the nearest one: patches of 14 pixels get the stride 16.
        pixel_mean, pixel_std: of RGB pixels in [0, 255]. Default: the values in the library's data
            config.
        options: arguments of the library's constructor.
        dtype: see `Teacher`.

    Raises:
        FileNotFoundError: the file of weights does not exist.
        ImportError: timm is not installed.
        OSError: the library could not download its weights.
        ValueError: the library does not know the network, the weights do not fit, or an argument
            has an impossible value.
    """

    detects = False

    def __init__(
        self,
        backbone: str,
        weights: str | bool | None,
        *,
        out_features: Sequence[str] | None = None,
        scale: float | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        options: Mapping[str, Any] | None = None,
        dtype: str | None = None,
    ):
        if not (weights is None or weights is True or (isinstance(weights, str) and weights)):
            raise ValueError(
                f"FeatureTeacher.weights: expected the path of a file, True or None, found "
                f"{weights!r}."
            )
        if isinstance(weights, str):
            check_file(weights, "FeatureTeacher.weights", "None for random weights")
        # The student's initial weights and batches must not depend on how its teacher was built.
        with torch.random.fork_rng(devices=[]):
            network = FeatureNetwork(
                _build(backbone, weights or False, out_features, options),
                backbone,
                scale=scale,
                pixel_mean=pixel_mean,
                pixel_std=pixel_std,
            )
        self._library_weights = weights
        super().__init__(network, None, input_format="RGB", dtype=dtype)
        self.source = backbone

    def _load_weights(self) -> None:
        # The library's network has its weights already.
        given = self._library_weights
        if given is None:
            logger.warning(
                "FeatureTeacher %s: weights=None, so its weights are random.", self.model.name
            )
        else:
            self.loaded = "weights of the library" if given is True else f"weights from {given}"

    def detect(self, batched_inputs: Sequence[dict], *, input_format: str) -> list[dict]:
        """
        Raises:
            ValueError: always, because there are no detections.
        """
        raise ValueError(
            f"teacher {self.model.name}: expected a detector, found a network of features, which "
            f"has no detector to evaluate. Evaluate the student, and set "
            f"train.teacher_check.images=0."
        )


def _build(
    name: str,
    pretrained: str | bool,
    out_features: Sequence[str] | None,
    options: Mapping[str, Any] | None,
) -> Backbone:
    if not is_patch_network(name):
        levels: Any = {} if out_features is None else {"out_features": out_features}
        return LibraryBackbone(name, pretrained=pretrained, options=options, **levels)
    if out_features is not None:
        raise ValueError(
            f"FeatureTeacher.out_features: expected None, because {name} has one level, 'patches', "
            f"found {list(out_features)}."
        )
    return PatchBackbone(name, pretrained=pretrained, options=options)


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    for field, values in (("pixel_mean", mean), ("pixel_std", std)):
        if not hasattr(values, "__len__") or isinstance(values, str) or len(values) != 3:
            raise ValueError(f"FeatureTeacher.{field}: expected three numbers, found {values!r}.")
    for x in mean:
        check_number("FeatureTeacher.pixel_mean", x, most=255)
    for x in std:
        check_number("FeatureTeacher.pixel_std", x, above=0)
    # A std of 1 is usual with a mean of 103 and more.
    if max(std) < 1 or (max(mean) <= 1 and (max(mean) > 0 or max(std) == 1)):
        raise ValueError(
            f"FeatureTeacher.pixel_mean, pixel_std: expected values for pixels in [0, 255], found "
            f"{[*mean]} and {[*std]}. Multiply values for pixels in [0, 1] by 255."
        )


class FeatureNetwork(Backbone):
    """A backbone with its own normalization and its own image size.

    Strides, and the size that images must be a multiple of, are in pixels of the student's images.

    Args:
        body: the backbone.
        name: for messages.
        scale, pixel_mean, pixel_std: see `FeatureTeacher`.

    Raises:
        ValueError: the library does not know the statistics of the pixels, or a stride would not be
            a whole number of pixels.
    """

    input_format = "RGB"

    def __init__(
        self,
        body: Backbone,
        name: str,
        *,
        scale: float | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.body, self.name = body, name
        self._shapes = body.output_shape()
        self.scale = self._scale(scale)
        if pixel_mean is None or pixel_std is None:
            mean, std = pixel_statistics(name)
            pixel_mean = mean if pixel_mean is None else pixel_mean
            pixel_std = std if pixel_std is None else pixel_std
        _check_statistics(pixel_mean, pixel_std)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        for field, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(field, torch.tensor([*values]).view(3, 1, 1), persistent=False)

    def _scale(self, given: float | None) -> float:
        strides = [shape.stride for shape in self._shapes.values()]
        if given is None:
            power = 2 ** (max(strides) - 1).bit_length()  # the next power of two
            nearest = min((power // 2, power), key=lambda p: abs(p - max(strides)))
            return max(strides) / nearest
        check_number("FeatureTeacher.scale", given, above=0)
        if any((stride / given) % 1 for stride in strides):
            found = ", ".join(f"{stride / given:g}" for stride in strides)
            raise ValueError(
                f"FeatureTeacher.scale of {self.name}: expected a scale with whole strides, "
                f"found {given:g}, which makes strides {strides} to {found}. For example, "
                f"scale={max(strides) / 2 ** max(strides).bit_length():g} makes the largest of "
                f"them {2 ** max(strides).bit_length()}."
            )
        return float(given)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=shape.channels, stride=round(shape.stride / self.scale))
            for name, shape in self._shapes.items()
        }

    @property
    def size_divisibility(self) -> int:
        """Height and width of the images must be multiples of this number of pixels."""
        return round(self.body.size_divisibility / self.scale)

    def preprocess_image(self, batched_inputs: Sequence[dict]) -> ImageList:
        """Normalize RGB images (3, H, W) with values in [0, 255], and pad them to one size."""
        images = [x["image"].to(self.pixel_mean.device) for x in batched_inputs]
        return ImageList.from_tensors([(x - self.pixel_mean) / self.pixel_std for x in images])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (N, 3, H, W), normalized; H and W are multiples of `size_divisibility`.

        Returns:
            level name -> (N, C, H / stride, W / stride).
        """
        if self.scale != 1:
            size = [round(side * self.scale) for side in images.shape[-2:]]
            images = F.interpolate(
                images, size=size, mode="bilinear", align_corners=False, antialias=self.scale < 1
            )
        return self.body(images)


@dataclass(frozen=True)
class FeatureReader(Reader):
    """Reader of a `FeatureNetwork`, which has no classes and no head."""

    @property
    def name(self) -> str:
        return self.detector.name


@get_reader.register
def _(network: FeatureNetwork) -> Reader:
    return FeatureReader(network, backbone=network, num_classes=0)
