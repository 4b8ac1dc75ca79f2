"""Wrap plain vision transformers of timm as Detectron2 backbones with one level."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import Tensor

from .sources import Timm, build_network
from .weights import load_backbone_weights, read_weights

__all__ = ["PatchBackbone", "is_patch_network"]

logger = logging.getLogger(__name__)

_LEVEL = "patches"


def is_patch_network(name: str) -> bool:
    """Whether a network has one grid of patches, as ViT and DINOv3 have, and no pyramid of maps.

    Args:
        name: as in `LibraryBackbone`. Names of torchvision, and names that timm does not know, give
            False.
    """
    library, _, model = name.partition("/")
    if library != "timm":
        return False
    try:
        with torch.device("meta"):  # only the table of its maps is needed
            network: Any = Timm.build(model, False, {})
    except (RuntimeError, TypeError, ValueError):
        return False  # building the backbone reports what is wrong
    strides = [info["reduction"] for info in getattr(network, "feature_info", None) or ()]
    return len(strides) > 1 and len(set(strides)) == 1


class PatchBackbone(Backbone):
    """A plain vision transformer of timm as a Detectron2 `Backbone` with one level, "patches".

    The map is the output of the last block after the network's final norm, without class and
    register tokens. Images may have any size that is a multiple of the patch: timm interpolates
    learned position embeddings.

    Args:
        name: "timm/<model>", for example "timm/vit_small_patch16_dinov3".
        pretrained, options: see `LibraryBackbone`.

    Raises:
        ImportError: timm is not installed.
        FileNotFoundError: the file of weights does not exist.
        OSError: timm could not download its weights.
        ValueError: timm cannot build the network, or the weights do not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str = False,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.name = name
        # The file is read first, so that a missing file is reported before the network is built.
        weights = read_weights(pretrained, name) if isinstance(pretrained, str) else None
        network = build_network(Timm, name, pretrained is True, dict(options or {}))
        self._last = len(network.feature_info) - 1
        names = set(network.state_dict())
        network.prune_intermediate_layers([self._last], prune_norm=False, prune_head=True)
        self.body = network
        if isinstance(pretrained, str) and weights is not None:
            counts = load_backbone_weights(network, weights, pretrained, name, names)
            logger.info("Backbone %s: %s from %s", name, counts, pretrained)
        elif pretrained is True:
            logger.info("Backbone %s: timm's own weights", name)
        self._out_features = [_LEVEL]
        self._out_feature_strides = {_LEVEL: network.feature_info[-1]["reduction"]}
        self._out_feature_channels = {_LEVEL: self._probe()}

    @torch.no_grad()
    def _probe(self) -> int:
        """The channels of the map, by a small image of a size that the network does not expect."""
        patch = self.size_divisibility
        try:
            found = tuple(self(torch.zeros(1, 3, 2 * patch, 3 * patch))[_LEVEL].shape)
        except (AssertionError, RuntimeError, TypeError) as e:
            raise ValueError(
                f"{self.name}: expected a network for images of any size, found that it refuses "
                f"some sizes ({e}). Choose another network."
            ) from e
        if found[2:] != (2, 3):
            raise ValueError(
                f"{self.name}: expected a map of 2 x 3 cells for {2 * patch} x {3 * patch} pixels, "
                f"found {found[2:]}. Choose another network."
            )
        return found[1]

    @property
    def size_divisibility(self) -> int:
        """Height and width of the images must be multiples of this number of pixels."""
        return self._out_feature_strides[_LEVEL]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (N, 3, H, W); H and W are multiples of the patch.

        Returns:
            {"patches": (N, C, H / patch, W / patch)}.
        """
        (patches,) = self.body.forward_intermediates(
            images, indices=[self._last], norm=True, intermediates_only=True
        )
        return {_LEVEL: patches}
