"""The operations that timm and torchvision need different code for.

A source builds a network, finds the feature map of each pyramid level, removes the parts that no
level needs, and converts batch norms. A level is the last map of its stride. The libraries are
imported only when a network is built.

Shapes: N images, C channels, H x W pixels of a map.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

__all__ = ["Level", "Source", "Timm", "Torchvision", "build_network"]

# Size of the probing image, which shows the strides that a network has. The ratio of the sides is
# 3 : 5. For a map of stride 2^k, no number of channels C gives (C, H) or (W, C) that ratio. A map
# (N, C, H, W) is therefore never mistaken for one with the channels last, (N, H, W, C).
_HEIGHT, _WIDTH = 96, 160


class Level(NamedTuple):
    """The last map of a stride.

    Attributes:
        key: the library's name (torchvision) or index (timm) of the map.
        map: the map of the probing image, with its graph.
        channels_last: whether the map is (N, H, W, C) instead of (N, C, H, W).
    """

    key: str | int
    map: Tensor
    channels_last: bool = False


# Runs the cut network on images and returns one map per level.
MapFunction = Callable[[nn.Module, Tensor], list[Tensor]]


class Source(Protocol):
    """A library of networks; `Torchvision` and `Timm` are the two sources."""

    @staticmethod
    def build(model: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
        """Build a network by its name, with the library's own weights if `pretrained`."""

    @staticmethod
    def pixel_statistics(model: str) -> tuple[Any, Any]:
        """Mean and standard deviation of RGB pixels in [0, 1], with which a network was trained.

        Raises:
            LookupError: the library does not say it.
        """

    @staticmethod
    def levels(network: nn.Module) -> tuple[dict[int, Level], Tensor | None]:
        """Find stride -> level, and the map of the stem, by running the probing image.

        The maps have gradients, which show what each of them is computed from.
        """

    @staticmethod
    def cut(network: nn.Module, keys: list[Any]) -> tuple[nn.Module, MapFunction]:
        """Remove what the levels `keys` do not need.

        Returns:
            the remaining network, and a function of that network and images that returns the maps
            of the levels.
        """

    @staticmethod
    def freeze_norm(module: nn.Module) -> nn.Module:
        """Return a `FrozenBatchNorm2d` in place of a batch norm."""

    @staticmethod
    def sync_norm(module: nn.Module) -> nn.Module:
        """Return a `SyncBatchNorm` in place of a batch norm."""


def build_network(
    source: type[Source], name: str, pretrained: bool, options: dict[str, Any]
) -> Any:
    """Build a network in evaluation mode.

    Args:
        name: library and model, such as "timm/mobilenetv2_100".
        pretrained, options: see `Source.build`.

    Raises:
        OSError: the library could not download its weights.
        ValueError: the library cannot build the network.
    """
    library, _, model = name.partition("/")
    try:
        return source.build(model, pretrained, options).eval()
    except OSError as e:
        raise OSError(
            f"{name}.pretrained=True: expected weights in {library}'s cache or on the internet, "
            f"found neither ({e}). Download them elsewhere and give the path of a file, or give "
            f"False for random weights."
        ) from e
    except (RuntimeError, TypeError, ValueError) as e:
        raise ValueError(
            f"{name}: expected a network that {library} can build with options={options}, found "
            f"that it cannot ({e}). Check the name and the options."
        ) from e


class Torchvision:
    """Networks of torchvision, cut by its `create_feature_extractor`. See `Source`."""

    @staticmethod
    def build(model: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
        from torchvision.models import get_model

        return get_model(model, weights="DEFAULT" if pretrained else None, **options)

    @staticmethod
    def pixel_statistics(model: str) -> tuple[Any, Any]:
        from torchvision.models import get_model_weights

        try:
            preset = get_model_weights(model).DEFAULT.transforms()
            return preset.mean, preset.std
        except (AttributeError, ValueError) as e:
            raise LookupError(str(e)) from e

    @staticmethod
    def levels(network: nn.Module) -> tuple[dict[int, Level], Tensor | None]:
        return _last_maps(network, network)

    @staticmethod
    def cut(network: nn.Module, keys: list[Any]) -> tuple[nn.Module, MapFunction]:
        from torchvision.models.feature_extraction import create_feature_extractor

        return create_feature_extractor(network, keys, suppress_diff_warning=True), _graph_maps

    @staticmethod
    def freeze_norm(module: nn.Module) -> nn.Module:
        return FrozenBatchNorm2d.convert_frozen_batchnorm(module)

    @staticmethod
    def sync_norm(module: nn.Module) -> nn.Module:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)


class Timm:
    """Networks of timm, by their `forward_intermediates`, whose maps are (N, C, H, W).

    See `Source`.
    """

    @staticmethod
    def build(model: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
        try:
            import timm
        except ImportError as e:
            raise ImportError(
                f"timm/{model}: expected the package timm, found none. Run `pip install timm`."
            ) from e
        # By default, transformers are built for one image size. The option that allows any size has
        # different names in different models. Swin also has to keep the shift of its windows, which
        # it would drop in stages that consist of a single window at that image size.
        any_size: dict[str, bool]
        for any_size in (
            {"strict_img_size": False, "always_partition": True},
            {"strict_img_size": False},
            {"dynamic_img_size": True},
        ):
            try:
                return timm.create_model(model, pretrained=pretrained, **{**any_size, **options})
            except TypeError:  # this model does not have these options
                continue
        return timm.create_model(model, pretrained=pretrained, **options)

    @staticmethod
    def pixel_statistics(model: str) -> tuple[Any, Any]:
        import timm

        try:
            config = timm.get_pretrained_cfg(model)
        except RuntimeError as e:  # the tag behind the name is unknown
            raise LookupError(str(e)) from e
        if config is None:
            raise LookupError(f"timm has no data config of {model}")
        return config.mean, config.std

    @staticmethod
    def levels(network: nn.Module) -> tuple[dict[int, Level], Tensor | None]:
        if not hasattr(network, "forward_intermediates"):
            raise ValueError(
                f"timm: expected a network with forward_intermediates (timm >= 1.0), found "
                f"{type(network).__name__}. Choose another network, or upgrade timm."
            )
        model: Any = network
        maps: list[Tensor] = []

        def run(image: Tensor) -> None:
            maps.extend(model.forward_intermediates(image, intermediates_only=True))

        _, stem = _last_maps(network, run)
        return {_stride(x)[0]: Level(i, x) for i, x in enumerate(maps) if _stride(x)[0]}, stem

    @staticmethod
    def cut(network: nn.Module, keys: list[Any]) -> tuple[nn.Module, MapFunction]:
        model: Any = network
        model.prune_intermediate_layers(keys, prune_norm=True, prune_head=True)
        return network, functools.partial(_intermediate_maps, indices=keys)

    @staticmethod
    def freeze_norm(module: nn.Module) -> nn.Module:
        if not hasattr(module, "act"):
            return FrozenBatchNorm2d.convert_frozen_batchnorm(module)
        frozen = _FrozenBatchNormAct2d.convert_frozen_batchnorm(module)
        frozen.drop, frozen.act = module.drop, module.act
        return frozen

    @staticmethod
    def sync_norm(module: nn.Module) -> nn.Module:
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)


class _FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A frozen batch norm with dropout and activation, as many of timm's batch norms have."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def _graph_maps(body: nn.Module, images: Tensor) -> list[Tensor]:
    """A `MapFunction` for torchvision's feature extractors."""
    return list(body(images).values())


def _intermediate_maps(body: Any, images: Tensor, indices: list[int]) -> list[Tensor]:
    """A `MapFunction` for timm's networks."""
    return body.forward_intermediates(
        images, indices=indices, stop_early=True, intermediates_only=True
    )


def _stride(x: Any) -> tuple[int, bool]:
    """Find the stride of an output for the probing image.

    Returns:
        the stride, and whether the channels are last; (0, False) if `x` is not a map.
    """
    if isinstance(x, Tensor) and x.dim() == 4 and len(x) == 1:
        for channels_last, (h, w) in ((False, x.shape[2:]), (True, x.shape[1:3])):
            if h * _WIDTH == w * _HEIGHT and _HEIGHT % h == 0:
                return _HEIGHT // h, channels_last
    return 0, False


def _last_maps(
    network: nn.Module, run: Callable[[Tensor], Any]
) -> tuple[dict[int, Level], Tensor | None]:
    """Find the last module output of each stride, and the output of the stem.

    A module whose input and output have different strides begins a stage. Outputs of modules inside
    it are no levels, even if they are the last of their stride. An example is the inverted
    bottleneck, which widens a map before its strided convolution.

    Args:
        network: its modules are observed.
        run: runs the network on an image.

    Returns:
        stride -> level; the map of the stem, or None if there is none.
    """
    # Name, stride of the input and output of each module, in the order of the calls.
    calls: list[tuple[str, int, Any]] = []

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, args: Any, out: Any) -> None:
            calls.append((name, _stride(args[0])[0] if args else 0, out))

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in network.named_modules()
        if name
    ]
    try:
        run(torch.zeros(1, 3, _HEIGHT, _WIDTH))
    finally:
        for handle in handles:
            handle.remove()
    # Modules that begin a stage, as the prefix of their children's names, and their input's stride.
    begins = [(f"{name}.", before) for name, before, out in calls if before != _stride(out)[0]]
    levels: dict[int, Level] = {}
    # Output of the layer that goes from the image to stride 4 in one step, as in Swin.
    patches = None
    for name, before, out in calls:
        stride, channels_last = _stride(out)
        if before == 1 and stride == 4:
            patches = out
        if stride and not any(stride == s and name.startswith(start) for start, s in begins):
            levels[stride] = Level(name, out, channels_last)
    return levels, patches if patches is not None or 2 not in levels else levels[2].map
