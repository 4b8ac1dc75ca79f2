"""Networks of timm and torchvision in Detectron2's form."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from omegaconf import OmegaConf
from torch import Tensor, nn

from .sources import Level, Timm, Torchvision
from .weights import load_strictly, read_weights

__all__ = ["LibraryBackbone"]

logger = logging.getLogger(__name__)

_SOURCES = {"timm": Timm, "torchvision": Torchvision}
_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class LibraryBackbone(Backbone):
    """A network of timm or torchvision that has maps of strides 4, 8, 16 and 32, or some of these.

    The last map of a stride is its level. What the levels do not need, such as the classifier, is
    left out. Tensors keep the names that the library gives them, below `body`.

    Args:
        name: "timm/<model>" or "torchvision/<model>", for example "timm/mobilenetv2_100" or
            "torchvision/swin_t".
        out_features: levels to return, of "res2" (stride 4), "res3" (8), "res4" (16), "res5" (32).
        pretrained: True for the weights that the library fetches; or a file (.pth, .safetensors)
            that holds them under the library's names, of which no level may lack a tensor; False
            for random weights.
        freeze_at: as in Detectron2's `ResNet.freeze`. 1 freezes the stem (all that feeds the map of
            stride 2, or the layer that goes from the image to stride 4), 2 also all that feeds
            `res2`, and so on to 5. Batch norms there become frozen ones.
        norm: "" or "BN" for batch norms that train, "SyncBN", or "FrozenBN". Layer norms and others
            stay as they are.
        options: arguments of the library's constructor, such as `{"drop_path_rate": 0.2}`.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError: there is no such file.
        OSError: the library could not fetch its weights.
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
        if OmegaConf.is_config(options):
            options = OmegaConf.to_container(options)
        weights = read_weights(pretrained, name) if isinstance(pretrained, str) else None

        try:
            network = source.build(model, pretrained is True, dict(options or {})).eval()
        except OSError as e:
            raise OSError(
                f"{name}.pretrained=True: expected weights from {prefix}'s cache or the network, "
                f"found neither ({e}). Give the path of a file."
            ) from e
        except (RuntimeError, TypeError, ValueError) as e:
            raise ValueError(
                f"{name}: expected a network that {prefix} can build with options={options}, found "
                f"that it cannot ({e})."
            ) from e
        levels, frozen = self._probe(source, network, freeze_at)
        self._out_features = sorted(set(out_features), key=_STRIDES.get)
        lacking = [f for f in self._out_features if _STRIDES[f] not in levels]
        if lacking:
            raise ValueError(
                f"{name}: expected a map of stride {_STRIDES[lacking[0]]} for {lacking[0]!r}, "
                f"found strides {sorted(levels)}. Change out_features, or take another network."
            )
        chosen = [levels[_STRIDES[f]] for f in self._out_features]
        self._channels_last = [level.channels_last for level in chosen]
        self._out_feature_strides = {f: _STRIDES[f] for f in self._out_features}
        self._out_feature_channels = {
            f: level.map.shape[-1 if level.channels_last else 1]
            for f, level in zip(self._out_features, chosen, strict=True)
        }

        tensors = set(network.state_dict())
        self.body, self._maps = source.cut(network, [level.key for level in chosen])
        if pretrained is True:
            logger.info("Backbone %s: %s's own weights", name, prefix)
        elif weights is not None:
            counts = load_strictly(self.body, weights, pretrained, name, tensors)
            logger.info("Backbone %s: %s from %s", name, counts, pretrained)
        for key, parameter in self.body.named_parameters():
            if key in frozen:
                parameter.requires_grad_(False)
        self._convert_norms(source, norm, frozen)
        self.train()

    def _check(self, field: str, found: Sequence, choices: Collection, suffix: str = "") -> None:
        for value in found:
            if value not in choices:
                expected = ", ".join(f"{c}{suffix}" if c != "" else "''" for c in choices)
                raise ValueError(
                    f"LibraryBackbone({self.name!r}).{field}: expected one of {expected}, "
                    f"found {value!r}"
                )

    @torch.enable_grad()
    def _probe(
        self, source: type, network: nn.Module, freeze_at: int
    ) -> tuple[dict[int, Level], set[str]]:
        """The level of each stride, and the names of the parameters to freeze."""
        try:
            levels, stem = source.levels(network)
        except (AssertionError, RuntimeError) as e:
            raise ValueError(
                f"{self.name}: expected a network for images of any size, found that it refuses "
                f"some ({e}). See whether its `options` help, or take another."
            ) from e
        if not freeze_at:
            return levels, set()
        level = levels.get(2**freeze_at)
        end = stem if freeze_at == 1 else level and level.map
        if end is None:
            raise ValueError(
                f"{self.name}.freeze_at={freeze_at}: expected a map of stride {2**freeze_at}, "
                f"found strides {sorted(levels)}"
            )
        parameters = {k: p for k, p in network.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(end.sum(), list(parameters.values()), allow_unused=True)
        return levels, {k for k, g in zip(parameters, gradients, strict=True) if g is not None}

    def _convert_norms(self, source: type, norm: str, frozen: set[str]) -> None:
        kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
        norms = {k: m for k, m in self.body.named_modules() if isinstance(m, kinds)}
        if norm and not norms:
            raise ValueError(f"{self.name}.norm: it has no batch norm, expected '', found {norm!r}")
        for key, module in norms.items():
            if norm == "FrozenBN" or f"{key}.weight" in frozen:
                module = source.freeze(module)
            elif norm == "SyncBN":
                module = source.synchronise(module)
            parent, _, child = key.rpartition(".")
            setattr(self.body.get_submodule(parent), child, module)

    def __deepcopy__(self, memo: dict) -> LibraryBackbone:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        # torchvision's part of a copy is in training mode, whatever the original's.
        copied.body.train(self.body.training)
        return copied

    @property
    def size_divisibility(self) -> int:
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
