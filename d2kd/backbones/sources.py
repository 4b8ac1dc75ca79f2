"""What differs between timm and torchvision: building, finding the levels, cutting, batch norms.

A level is the last map of its stride. Both libraries are imported when a network is built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

__all__ = ["Level", "Timm", "Torchvision"]

# The image that shows which strides a network has. As its sides are 3 : 5, a map of stride 2^k
# cannot be taken for one whose channels are last: no power of two is a multiple of 3 or 5.
_HEIGHT, _WIDTH = 96, 160


class Level(NamedTuple):
    """What the library calls the last map of a stride, and the map of the probing image."""

    key: str | int
    map: Tensor
    channels_last: bool = False


class Torchvision:
    @staticmethod
    def build(model: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
        from torchvision.models import get_model

        return get_model(model, weights="DEFAULT" if pretrained else None, **options)

    @staticmethod
    def levels(network: nn.Module) -> tuple[dict[int, Level], Tensor | None]:
        """Stride -> level, and the stem's map; with gradients."""
        return _last_maps(network, network)

    @staticmethod
    def cut(network: nn.Module, keys: list[str]) -> tuple[nn.Module, Callable]:
        """What the levels need of the network, and (that, images) -> list of their maps."""
        from torchvision.models.feature_extraction import create_feature_extractor

        return create_feature_extractor(network, keys, suppress_diff_warning=True), _graph_maps

    freeze = staticmethod(FrozenBatchNorm2d.convert_frozen_batchnorm)
    synchronise = staticmethod(nn.SyncBatchNorm.convert_sync_batchnorm)


class Timm:
    """The same four for timm, by `forward_intermediates`, whose maps are (N, C, H, W)."""

    @staticmethod
    def build(model: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
        try:
            import timm
        except ImportError as e:
            raise ImportError(f"timm/{model}: expected timm, found none. pip install timm") from e
        # Transformers are built for one image size unless told otherwise, each in its own words.
        # Swin also leaves out the shift of windows where that size is a single one.
        for any_size in (
            {"strict_img_size": False, "always_partition": True},
            {"strict_img_size": False},
            {"dynamic_img_size": True},
        ):
            try:
                return timm.create_model(model, pretrained=pretrained, **{**any_size, **options})
            except TypeError:  # not its words
                continue
        return timm.create_model(model, pretrained=pretrained, **options)

    @staticmethod
    def levels(network: nn.Module) -> tuple[dict[int, Level], Tensor | None]:
        if not hasattr(network, "forward_intermediates"):
            raise ValueError(
                f"timm: expected a network with forward_intermediates (timm >= 1.0), found "
                f"{type(network).__name__}. Take another, or upgrade timm."
            )
        maps: list[Tensor] = []
        take = functools.partial(network.forward_intermediates, intermediates_only=True)
        _, stem = _last_maps(network, lambda image: maps.extend(take(image)))
        return {_stride(x)[0]: Level(i, x) for i, x in enumerate(maps) if _stride(x)[0]}, stem

    @staticmethod
    def cut(network: nn.Module, keys: list[int]) -> tuple[nn.Module, Callable]:
        network.prune_intermediate_layers(keys, prune_norm=True, prune_head=True)
        return network, functools.partial(_intermediate_maps, indices=keys)

    @staticmethod
    def freeze(module: nn.Module) -> nn.Module:
        if not hasattr(module, "act"):
            return FrozenBatchNorm2d.convert_frozen_batchnorm(module)
        frozen = _FrozenBatchNormAct2d.convert_frozen_batchnorm(module)
        frozen.drop, frozen.act = module.drop, module.act
        return frozen

    @staticmethod
    def synchronise(module: nn.Module) -> nn.Module:
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)


class _FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """With the activation that many of timm's batch norms contain."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def _graph_maps(body: nn.Module, images: Tensor) -> list[Tensor]:
    return list(body(images).values())


def _intermediate_maps(body: nn.Module, images: Tensor, indices: list[int]) -> list[Tensor]:
    return body.forward_intermediates(
        images, indices=indices, stop_early=True, intermediates_only=True
    )


def _stride(x: Any) -> tuple[int, bool]:
    """Stride of a map of the probing image, and are its channels last; (0, False) for no map."""
    if isinstance(x, Tensor) and x.dim() == 4 and len(x) == 1:
        for channels_last, (h, w) in ((False, x.shape[2:]), (True, x.shape[1:3])):
            if h * _WIDTH == w * _HEIGHT and _HEIGHT % h == 0:
                return _HEIGHT // h, channels_last
    return 0, False


def _last_maps(
    network: nn.Module, run: Callable[[Tensor], Any]
) -> tuple[dict[int, Level], Tensor | None]:
    """The last module output of each stride, and the stem's, found by running an image through.

    A module that takes one stride to another is where a stage begins. Maps inside it, such as the
    widened ones that an inverted bottleneck makes before its strided convolution, are no level.
    """
    calls: list[tuple[str, int, Any]] = []
    handles = [
        module.register_forward_hook(
            lambda _m, args, out, name=name: calls.append(
                (name, _stride(args[0])[0] if args else 0, out)
            )
        )
        for name, module in network.named_modules()
        if name
    ]
    try:
        run(torch.zeros(1, 3, _HEIGHT, _WIDTH))
    finally:
        for handle in handles:
            handle.remove()
    begins = [(f"{name}.", before) for name, before, out in calls if before != _stride(out)[0]]
    levels: dict[int, Level] = {}
    patches = None  # of a network that goes to stride 4 at once
    for name, before, out in calls:
        stride, channels_last = _stride(out)
        if before == 1 and stride == 4:
            patches = out
        if stride and not any(stride == s and name.startswith(start) for start, s in begins):
            levels[stride] = Level(name, out, channels_last)
    return levels, patches if patches is not None or 2 not in levels else levels[2].map
