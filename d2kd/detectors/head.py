"""The head that the dense detectors share: two towers and their predictors, shared by all levels.

Shapes: N images, L levels, C channels, D channels of the box regression, H x W cells of a level,
K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

__all__ = ["PointHead"]


class PointHead(nn.Module):
    """Predicts class logits, box regression and, optionally, a quality logit for each location.

    "Point" means a location of a feature map, as in FCOS. The head is not related to PointRend.

    The modules have the names of Detectron2's `RetinaNetHead`, so that each of the two can inherit
    the weights of the other. These are the towers `cls_subnet` and `bbox_subnet` (flat
    sequences of convolution, norm and ReLU) and the predictors `cls_score` and `bbox_pred`. Two
    parts are new. `quality` is a predictor on the box tower. `scales`, (L,), holds one learned
    scalar per level that multiplies the box regression (FCOS, arXiv 1904.01355, section 3.2).
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        conv_dims: Sequence[int],
        norm: str | Callable[[int], nn.Module] = "GN",
        conv_bias: bool = False,
        box_channels: int = 4,
        quality: bool = True,
        prior_prob: float = 0.01,
        box_bias: float = 0.0,
    ):
        """
        Args:
            input_shape: a `ShapeSpec` of each level; all have the same channels.
            num_classes: K.
            conv_dims: output channels of each convolution of a tower.
            norm: a norm for Detectron2's `get_norm`, or "" for none. All levels share the norms.
            conv_bias: whether the towers' convolutions have a bias.
            box_channels: D.
            quality: whether there is a quality branch.
            prior_prob: probability of each class at the start of training.
            box_bias: bias of the box predictor at the start of training.

        Raises:
            ValueError: the levels have different channels, or `conv_dims` is empty.
        """
        super().__init__()
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1 or not conv_dims:
            raise ValueError(
                f"{type(self).__name__}: expected levels of the same channels and at least one "
                f"convolution, found channels {sorted(channels)} and conv_dims {list(conv_dims)}. "
                f"Give input_shape one ShapeSpec of the neck for each level."
            )
        self.conv_bias = conv_bias
        dims = (channels.pop(), *conv_dims)
        self.cls_subnet = self._make_tower(dims, norm)
        self.bbox_subnet = self._make_tower(dims, norm)
        prior = -math.log((1 - prior_prob) / prior_prob)
        self.cls_score = self._conv(dims[-1], num_classes, prior)
        self.bbox_pred = self._conv(dims[-1], box_channels, box_bias)
        self.quality = self._conv(dims[-1], 1, 0.0) if quality else None
        self.scales = nn.Parameter(torch.ones(len(input_shape)))

    def make_conv(self, index: int, in_channels: int, out_channels: int) -> nn.Module:
        """Build a convolution of a tower, with its initial weights.

        Override this method to use another kind of convolution. It is called while the head is
        built, once for each convolution of each tower.

        Args:
            index: position of the convolution in the tower, from 0.
            in_channels: channels of the input.
            out_channels: channels of the output.
        """
        return self._conv(in_channels, out_channels, 0.0 if self.conv_bias else None)

    def _make_tower(
        self, dims: Sequence[int], norm: str | Callable[[int], nn.Module]
    ) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index in range(len(dims) - 1):
            layers.append(self.make_conv(index, dims[index], dims[index + 1]))
            if norm:
                layers.append(get_norm(norm, dims[index + 1]))
            layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    @staticmethod
    def _conv(in_channels: int, out_channels: int, bias: float | None) -> nn.Conv2d:
        """A 3x3 convolution with weights from N(0, 0.01); None for `bias` means without a bias."""
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias is not None)
        nn.init.normal_(conv.weight, std=0.01)
        if conv.bias is not None and bias is not None:
            nn.init.constant_(conv.bias, bias)
        return conv

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """
        Args:
            features: a map (N, C, H, W) of each level, finest first.

        Returns:
            lists over levels: class logits (N, K, H, W), box regression (N, D, H, W) and, with a
            quality branch, quality logits (N, 1, H, W).

        Raises:
            ValueError: `features` and `input_shape` have different numbers of levels.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"{type(self).__name__}: expected {len(self.scales)} levels, as in input_shape, "
                f"found {len(features)}. Change input_shape or the detector's head_in_features."
            )
        logits, regression, quality = [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            boxes = self.bbox_subnet(feature)
            logits.append(self.cls_score(self.cls_subnet(feature)))
            regression.append(scale * self.bbox_pred(boxes))
            if self.quality is not None:
                quality.append(self.quality(boxes))
        return (logits, regression, quality) if self.quality is not None else (logits, regression)
