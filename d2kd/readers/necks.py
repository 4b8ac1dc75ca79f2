"""Reader of detectors without a head that methods can read, such as DETR and its relatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..knowledge import Knowledge
from .base import Reader
from .classes import num_classes

__all__ = ["NeckReader", "read_neck"]

_CELLS = 4  # side of the coarsest map of the probing image


@dataclass(frozen=True)
class NeckReader(Reader):
    """Reader of the maps after a detector's neck, or after its backbone where there is no neck.

    Attributes:
        neck: module that maps the backbone's dict to maps; None to read the backbone's maps.
        neck_shapes: level name -> channels and stride of the neck's maps, in the order of its
            outputs.
    """

    neck: nn.Module | None = None
    neck_shapes: Mapping[str, ShapeSpec] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, ShapeSpec]:
        if self.neck is None:
            return super().shapes
        return dict(sorted(self.neck_shapes.items(), key=lambda item: item[1].stride))

    @contextmanager
    def capture(
        self, needs: Collection[str], on_images: Callable[[Tensor], None] | None = None
    ) -> Iterator[Knowledge]:
        with super().capture(needs, on_images) as knowledge:
            if self.neck is None:
                yield knowledge
                return

            def after_neck(_module: nn.Module, _args: tuple, output: Any) -> None:
                knowledge.features = dict(zip(self.neck_shapes, _maps(output), strict=True))

            handle = self.neck.register_forward_hook(after_neck)
            try:
                yield knowledge
            finally:
                handle.remove()

    def run(
        self, images: Tensor, needs: Collection[str], crop_size: tuple[int, int] | None = None
    ) -> Knowledge:
        with self.capture(needs) as knowledge:
            features = self.backbone(images)
            if self.neck is not None:
                self.neck(features)
        return self.finalize(knowledge, needs, crop_size)


def read_neck(detector: nn.Module) -> NeckReader | None:
    """The reader of a detector with a `backbone` of Detectron2's interface, and maybe a `neck`.

    The backbone has `output_shape()` and maps (N, 3, H, W) to a dict of maps. A neck, as in
    detrex, maps this dict to a list of maps. A small image shows their channels and strides.

    Returns:
        the reader, or None if the detector has no such backbone.
    """
    backbone: Any = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module) or not hasattr(backbone, "output_shape"):
        return None
    common: dict[str, Any] = dict(
        detector=detector, backbone=backbone, num_classes=num_classes(detector)
    )
    neck = getattr(detector, "neck", None)
    if not isinstance(neck, nn.Module):
        return NeckReader(**common)
    return NeckReader(**common, neck=neck, neck_shapes=_neck_shapes(backbone, neck))


@torch.no_grad()
def _neck_shapes(backbone: Any, neck: nn.Module) -> dict[str, ShapeSpec]:
    """Run backbone and neck on an empty image.

    Returns:
        "p3" for stride 8 and so on -> channels and stride, in the order of the neck's outputs.
    """
    coarsest = max(shape.stride for shape in backbone.output_shape().values())
    # Necks add levels of twice and four times the stride.
    size = 4 * _CELLS * coarsest
    modules = [module for part in (backbone, neck) for module in part.modules()]
    training = [module.training for module in modules]
    parameter = next(backbone.parameters())
    image = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    try:
        backbone.eval()  # so that no batch norm learns from the empty image
        neck.eval()
        maps = _maps(neck(backbone(image)))
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
    shapes = {}
    for x in maps:
        stride = size // x.shape[-1]
        name = f"p{round(math.log2(stride))}"
        if name in shapes:
            raise TypeError(
                f"{type(neck).__name__}: expected maps of different strides after the neck, found "
                f"two with stride {stride}. Write a reader that names them and register it with "
                f"@d2kd.readers.get_reader.register."
            )
        shapes[name] = ShapeSpec(channels=x.shape[1], stride=stride)
    return shapes


def _maps(output: Any) -> list[Tensor]:
    """The maps (N, C, H, W) of a neck that returns one, several or a dict of them."""
    if isinstance(output, Tensor):
        return [output]
    return list(output.values() if isinstance(output, Mapping) else output)
