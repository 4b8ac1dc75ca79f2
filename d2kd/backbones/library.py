"""Wrap networks of timm and torchvision as Detectron2 backbones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from omegaconf import OmegaConf
from torch import Tensor, nn

from .sources import Level, Source, Timm, Torchvision, build_network
from .weights import load_backbone_weights, read_weights

__all__ = ["LibraryBackbone", "pixel_statistics"]

logger = logging.getLogger(__name__)

_SOURCES: dict[str, type[Source]] = {"timm": Timm, "torchvision": Torchvision}
_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB pixels in [0, 255], with which a network was trained.

    They come from the library's own data config.

    Args:
        name: as in `LibraryBackbone`. A tag of timm, as in "timm/convnext_tiny.fb_in22k", names the
            weights, and two sets of weights may have other statistics.

    Raises:
        ValueError: the library does not say them.
    """
    library, _, model = name.partition("/")
    try:
        mean, std = _SOURCES[library].pixel_statistics(model)
    except (LookupError, ImportError) as e:
        raise ValueError(
            f"{name}: expected mean and standard deviation of its pixels in the data config of "
            f"{' or '.join(_SOURCES)}, found none ({e}). Give pixel_mean and pixel_std."
        ) from e
    return [255.0 * x for x in mean], [255.0 * x for x in std]


class LibraryBackbone(Backbone):
    """A network of timm or torchvision as a Detectron2 `Backbone`.

    The network needs feature maps of strides 4, 8, 16 and 32, or of some of these. The last map of
    a stride is the level of that stride. Parts that no level needs, such as the classifier, are
    removed. Tensors keep the names that the library gives them, with the prefix `body.`.

    Args:
        name: "timm/<model>" or "torchvision/<model>", for example "timm/mobilenetv2_100" or
            "torchvision/swin_t".
        out_features: levels to return: "res2" (stride 4), "res3" (8), "res4" (16), "res5" (32).
        pretrained: True for the weights that the library downloads, False for random weights, or
            the path of a file (.pth, .safetensors). The file holds weights under the library's
            names, and must contain all tensors of the levels.
        freeze_at: as in Detectron2's `ResNet.freeze`. 0 freezes nothing. 1 freezes the stem: all
            layers before the map of stride 2, or the layer that goes from the image to stride 4 in
            one step. 2 also freezes all layers up to `res2`, and so on until 5. Batch norms in the
            frozen part become `FrozenBatchNorm2d`.
        norm: "" or "BN" for batch norms that are trained, "SyncBN", or "FrozenBN". Layer norms and
            other norms stay as they are.
        options: arguments of the library's constructor, such as `{"drop_path_rate": 0.2}`.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError: the file of weights does not exist.
        OSError: the library could not download its weights.
        ValueError: the network lacks a level, the weights do not fit, or a field has an impossible
            value.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        pretrained: bool | str = False,
        freeze_at: int = 0,
        norm: str = "",
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.name = name
        prefix, _, model = name.partition("/")
        self._check("name", [prefix if model else name], _SOURCES, "/<model>")
        self._check("out_features", out_features or [None], _STRIDES)
        self._check("freeze_at", [freeze_at], range(6))
        self._check("norm", [norm], ("", "BN", "SyncBN", "FrozenBN"))
        source = _SOURCES[prefix]
        arguments: Any = options
        if OmegaConf.is_config(options):
            arguments = OmegaConf.to_container(options)
        # The file is read first, so that a missing file is reported before the network is built.
        weights = read_weights(pretrained, name) if isinstance(pretrained, str) else None

        network = build_network(source, name, pretrained is True, dict(arguments or {}))
        levels, frozen = self._probe(source, network, freeze_at)
        self._out_features = sorted(set(out_features), key=lambda level: _STRIDES[level])
        lacking = [f for f in self._out_features if _STRIDES[f] not in levels]
        if lacking:
            raise ValueError(
                f"{name}: expected a map of stride {_STRIDES[lacking[0]]} for {lacking[0]!r}, "
                f"found strides {sorted(levels)}. Change out_features, or choose another network."
            )
        chosen = [levels[_STRIDES[f]] for f in self._out_features]
        self._channels_last = [level.channels_last for level in chosen]
        self._out_feature_strides = {f: _STRIDES[f] for f in self._out_features}
        self._out_feature_channels = {
            f: level.map.shape[-1 if level.channels_last else 1]
            for f, level in zip(self._out_features, chosen, strict=True)
        }

        network_keys = set(network.state_dict())
        self.body, self._maps = source.cut(network, [level.key for level in chosen])
        if pretrained is True:
            logger.info("Backbone %s: %s's own weights", name, prefix)
        elif isinstance(pretrained, str) and weights is not None:
            counts = load_backbone_weights(self.body, weights, pretrained, name, network_keys)
            logger.info("Backbone %s: %s from %s", name, counts, pretrained)
        for key, parameter in self.body.named_parameters():
            if key in frozen:
                parameter.requires_grad_(False)
        self._convert_norms(source, norm, frozen)
        self.train()

    def _check(self, field: str, values: Sequence, choices: Collection, suffix: str = "") -> None:
        """Raise a ValueError if one of the values of a field is not one of the choices."""
        for value in values:
            if value not in choices:
                expected = ", ".join(f"{c}{suffix}" if c != "" else "''" for c in choices)
                raise ValueError(
                    f"LibraryBackbone({self.name!r}).{field}: expected one of {expected}, "
                    f"found {value!r}"
                )

    @torch.enable_grad()
    def _probe(
        self, source: type[Source], network: nn.Module, freeze_at: int
    ) -> tuple[dict[int, Level], set[str]]:
        """Find the level of each stride, and the names of the parameters to freeze.

        The parameters to freeze are those from which the last frozen map has a gradient.
        """
        try:
            levels, stem = source.levels(network)
        except (AssertionError, RuntimeError) as e:
            raise ValueError(
                f"{self.name}: expected a network for images of any size, found that it refuses "
                f"some sizes ({e}). Try an option of its constructor, or choose another network."
            ) from e
        if not freeze_at:
            return levels, set()
        level = levels.get(2**freeze_at)
        last_frozen = stem if freeze_at == 1 else level.map if level else None
        if last_frozen is None:
            raise ValueError(
                f"{self.name}.freeze_at={freeze_at}: expected a map of stride {2**freeze_at}, "
                f"found strides {sorted(levels)}. Change freeze_at, or choose another network."
            )
        parameters = {k: p for k, p in network.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(
            last_frozen.sum(), list(parameters.values()), allow_unused=True
        )
        return levels, {k for k, g in zip(parameters, gradients, strict=True) if g is not None}

    def _convert_norms(self, source: type[Source], norm: str, frozen: set[str]) -> None:
        """Convert batch norms: all to the kind `norm`, but in frozen layers to frozen norms.

        Raises:
            ValueError: `norm` is given, but there are no batch norms.
        """
        kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
        norms = {k: m for k, m in self.body.named_modules() if isinstance(m, kinds)}
        if norm and not norms:
            raise ValueError(
                f"{self.name}.norm: it has no batch norm, expected '', found {norm!r}. Leave norm "
                f"out."
            )
        for key, module in norms.items():
            converted: nn.Module = module
            if norm == "FrozenBN" or f"{key}.weight" in frozen:
                converted = source.freeze_norm(module)
            elif norm == "SyncBN":
                converted = source.sync_norm(module)
            parent, _, child = key.rpartition(".")
            setattr(self.body.get_submodule(parent), child, converted)

    def __deepcopy__(self, memo: dict) -> LibraryBackbone:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        # torchvision's feature extractor puts copies in training mode, even if the original is not.
        copied.body.train(self.body.training)
        return copied

    @property
    def size_divisibility(self) -> int:
        """Height and width of the images must be multiples of this number of pixels."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (N, 3, H, W); H and W are multiples of `size_divisibility`.

        Returns:
            level name -> (N, C, H / stride, W / stride).
        """
        maps = zip(self._out_features, self._maps(self.body, images), strict=True)
        return {
            level: x.permute(0, 3, 1, 2).contiguous() if last else x
            for (level, x), last in zip(maps, self._channels_last, strict=True)
        }
