"""What a detector looks at: attention, key regions and uncertainty of a pyramid level.

The maps are arrays with a value for each pixel of the image, so that `draw_heat` can lay them over
it. Boxes are x1y1x2y2 in pixels of the image. Shapes: (C, H, W) channels and cells of a pyramid
level, (h, w) pixels of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..knowledge import Knowledge
from ..matching import GroundTruth
from ..methods import MCDropout
from ..methods.fgd import attention, box_masks
from ..readers import Reader, get_reader

__all__ = ["LevelMap", "key_regions", "spatial_attention", "uncertainty", "upsample"]


class LevelMap(NamedTuple):
    """A pyramid map of one image.

    Attributes:
        features: (1, C, H, W), of the padded input.
        stride: side of a cell in pixels.
        size: height and width of the image without padding, in pixels.
    """

    features: Tensor
    stride: int
    size: Sequence[int]

    @classmethod
    def of(
        cls, knowledge: Knowledge, reader: Reader, size: Sequence[int], level: str | None
    ) -> LevelMap:
        """
        Args:
            knowledge: of one image, with features.
            reader: of the same detector.
            size: see `LevelMap`.
            level: name of the pyramid level; default: the finest.

        Raises:
            ValueError: the detector has no such level.
        """
        shapes = reader.shapes
        level = level or next(iter(shapes))
        if level not in shapes:
            raise ValueError(
                f"level: expected a level of {reader.name} ({', '.join(shapes)}), found {level!r}."
            )
        return cls(knowledge.features[level].float(), shapes[level].stride, size)

    def attention(self, tau: float) -> np.ndarray:
        """See `spatial_attention`."""
        spatial, _ = attention(self.features, tau)
        return upsample(spatial[0], self.stride, self.size)

    def foreground(self, boxes: np.ndarray) -> np.ndarray:
        """See `key_regions`. `boxes` is (G, 4)."""
        given = torch.as_tensor(boxes, dtype=torch.float32, device=self.features.device)[None]
        valid = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        foreground, _ = box_masks(given, valid, self.features.shape[-2:], 1 / self.stride)
        return upsample(foreground[0], self.stride, self.size, smooth=False)

    def uncertainty(self, dropout: MCDropout) -> tuple[np.ndarray, np.ndarray]:
        """See the function `uncertainty`."""
        mean, variance = dropout.uncertainty(self.features)
        strength, spread = mean.abs().mean(1)[0], variance.mean(1).sqrt()[0]
        return (
            upsample(strength, self.stride, self.size),
            upsample(spread, self.stride, self.size),
        )


@torch.no_grad()
def _level_map(model: nn.Module, inputs: Mapping[str, Any], level: str | None) -> LevelMap:
    """A pyramid map of a detector for one image; its mode stays as it was."""
    reader = get_reader(model)
    mode = model.training
    model.eval()
    try:
        knowledge = reader.run(reader.images([dict(inputs)]), {"features"})
    finally:
        model.train(mode)
    return LevelMap.of(knowledge, reader, inputs["image"].shape[-2:], level)


def spatial_attention(
    model: nn.Module, inputs: Mapping[str, Any], *, level: str | None = None, tau: float = 0.5
) -> np.ndarray:
    """The spatial attention of FGD (arXiv 2111.11837): where the features are strong.

    Args:
        model: a detector that `d2kd.readers.get_reader` knows.
        inputs: one of Detectron2's input dicts; "image" is (3, h, w).
        level: name of the pyramid level, such as "p3"; default: the finest.
        tau: temperature of the softmax over the cells; a higher one gives a flatter map.

    Returns:
        (h, w), >= 0, interpolated to the pixels of the image. The mean over the cells is 1.

    Raises:
        ValueError: the detector has no such level.
    """
    return _level_map(model, inputs, level).attention(tau)


def key_regions(
    model: nn.Module, inputs: Mapping[str, Any], truth: GroundTruth, *, level: str | None = None
) -> np.ndarray:
    """The foreground mask of FGD: 1 / (number of cells of the box) inside boxes, 0 outside.

    Args:
        model, inputs, level: see `spatial_attention`.
        truth: the objects of the image.

    Returns:
        (h, w), in [0, 1]; each cell is a square with the side of the level's stride.
    """
    return _level_map(model, inputs, level).foreground(truth.boxes)


def uncertainty(
    model: nn.Module,
    inputs: Mapping[str, Any],
    dropout: MCDropout,
    *,
    level: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the uncertainty of a teacher's map by UET's Monte Carlo dropout, from one draw.

    The noise of dropout is multiplicative: where features are strong, they are uncertain too.

    Args:
        model, inputs, level: see `spatial_attention`.
        dropout: the uncertainty stage of the method.

    Returns:
        Two arrays (h, w) for `draw_heat`: the mean over channels of the absolute mean of the
        samples, and the root of the mean over channels of the variance of the samples.
    """
    return _level_map(model, inputs, level).uncertainty(dropout)


def upsample(cells: Tensor, stride: int, size: Sequence[int], *, smooth: bool = True) -> np.ndarray:
    """Enlarge the map of a pyramid level to the pixels of the image that it was computed from.

    Cell (i, j) covers pixels [i * stride, (i + 1) * stride) x [j * stride, (j + 1) * stride).

    Args:
        cells: (H, W), of the padded input.
        stride: side of a cell in pixels.
        size: height and width of the image without padding, in pixels.
        smooth: interpolate between the centers of the cells; otherwise each cell is a square.

    Returns:
        (h, w).
    """
    mode, align = ("bilinear", False) if smooth else ("nearest", None)
    pixels = F.interpolate(
        cells.float()[None, None].cpu(), scale_factor=float(stride), mode=mode, align_corners=align
    )
    return pixels[0, 0, : size[0], : size[1]].numpy()
