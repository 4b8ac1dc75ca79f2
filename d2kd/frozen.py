"""A detector that is built from a config, loaded strictly, and never trained."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from omegaconf import DictConfig
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .checkpoint import load_strictly
from .loading import build_detector, zoo_weights
from .resolution import square_size
from .upright import check_upright

__all__ = ["FrozenDetector", "check_input_format", "fuse_norms", "predictions_in_fp32"]

logger = logging.getLogger(__name__)


class FrozenDetector:
    """A detector that is built from a config, loaded strictly, and never trained.

    It is not an `nn.Module`: an object that holds it does not see it in `state_dict()`,
    `parameters()`, DDP buckets or `.train()`, and Detectron2's evaluation cannot switch it to
    training mode.

    Args:
        model: whatever `build_detector` takes.
        weights: path or URL of its checkpoint, loaded strictly; "zoo" for the weights that
            Detectron2's model zoo keeps for `model`; None to use the current weights of `model`.
        input_format: channel order that the detector was trained with, "BGR" or "RGB". Default:
            the order of the images that its config loads; else the detector's own `input_format`,
            where it has one; else "BGR", as in Detectron2.
        dtype: autocast precision of its forward pass, "bfloat16" or "float16"; None for fp32.
        setup: for the yacs config of a project; see `load_detector_config`.

    Attributes:
        model: the detector, in evaluation mode and without gradients.
        test_size: see `BuiltDetector`.
        loaded: what was loaded, in words; "" for a detector whose weights are used as given.

    Raises:
        FileNotFoundError: there is no file and no zoo entry of that name.
        ValueError: the weights do not fit, an argument has an impossible value, or the detector
            finds rotated boxes.
    """

    def __init__(
        self,
        model: nn.Module | DictConfig | str,
        weights: str | None,
        *,
        input_format: str | None = None,
        dtype: str | None = None,
        setup: Callable[[Any], Any] | str | None = None,
    ):
        kind = type(self).__name__
        if dtype not in (None, "bfloat16", "float16"):
            raise ValueError(f"{kind}.dtype: expected bfloat16, float16 or None, found {dtype!r}")
        self.dtype: torch.dtype | None = getattr(torch, dtype) if dtype else None
        self.source = model if isinstance(model, str) else type(model).__name__
        # The student's initial weights and batches must not depend on how its teacher was built.
        with torch.random.fork_rng(devices=[]):
            built = build_detector(model, pretrained=weights is None, setup=setup)
        check_upright(built.model, kind)
        # Typed as Any because nn.Module declares no attribute of Detectron2's detectors.
        self.model: Any = built.model
        self.test_size = built.test_size
        self.input_format = check_input_format(input_format or built.input_format, self.model)
        self.weights = zoo_weights(model) if weights == "zoo" else weights
        self.loaded = ""
        self._load_weights()
        self.model.eval().requires_grad_(False)

    def _load_weights(self) -> None:
        kind, name = type(self).__name__, type(self.model).__name__
        if self.weights is None:
            logger.warning("%s %s: weights=None, its weights are used as given.", kind, name)
        else:
            self.loaded = f"{load_strictly(self.model, self.weights)} from {self.weights}"
            logger.info("%s %s: %s", kind, name, self.loaded)

    @property
    def backbone(self) -> nn.Module | None:
        return getattr(self.model, "backbone", None)

    @property
    def divisibility(self) -> int:
        """Images are padded to multiples of this many pixels."""
        constraints = getattr(self.backbone, "padding_constraints", {})  # none in release 0.6
        own = getattr(self.backbone, "size_divisibility", 0)
        return max(constraints.get("size_divisibility", own), 1)

    @property
    def square_size(self) -> int:
        """Side of the square to which images are padded; see `d2kd.resolution.square_size`."""
        return square_size(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str):
        """Move the detector. This costs nothing if it is on that device already."""
        if self.device != torch.device(device):
            self.model.to(device)
        return self

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of its forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def check_input_format(given: str | None, model: nn.Module) -> str:
    """Channel order of a detector's input: the given one, its own, or Detectron2's default.

    A warning says that the default is taken. With red and blue swapped, a detector is only a little
    worse, so that nothing else would show the mistake.

    Raises:
        ValueError: the order is neither "BGR" nor "RGB".
    """
    input_format = given or getattr(model, "input_format", None)
    if input_format is None:
        input_format = "BGR"
        logger.warning(
            "%s: neither its config nor the detector says the channel order of its images. BGR, "
            "Detectron2's default, is taken. If it was trained with RGB, set input_format=RGB.",
            type(model).__name__,
        )
    if input_format not in ("BGR", "RGB"):
        raise ValueError(
            f"input_format of {type(model).__name__}: expected 'BGR' or 'RGB', found "
            f"{input_format!r}"
        )
    return input_format


def predictions_in_fp32(_head: nn.Module, _args: tuple, output: tuple) -> tuple:
    """A forward hook for the head of a dense detector under autocast.

    Detectron2's FCOS fails on predictions in half precision. Scores in half precision would be
    multiples of 1/256.
    """
    return tuple([x.float() for x in levels] for levels in output)


def fuse_norms(model: nn.Module) -> int:
    """Fuse batch norms into the convolutions that they follow, which saves a pass for each norm.

    A convolution W x + b that is normalized by stored statistics equals (W s) x + b', with one
    scale s and one bias b' for each channel. After this call, no checkpoint fits the model any
    longer. Norms that are modules of their own, outside Detectron2's `Conv2d`, are left alone:
    the module tree does not say which convolution they follow.

    Args:
        model: in evaluation mode; it is changed in place.

    Returns:
        the number of fused norms.
    """
    # Detectron2's Conv2d has the norm that it applies as a child; other convolutions have none.
    kinds = (FrozenBatchNorm2d, nn.BatchNorm2d)
    convolutions: list[Any] = [
        conv
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d)
        and isinstance(norm := getattr(conv, "norm", None), kinds)
        and norm.running_mean is not None
    ]
    for conv in convolutions:
        norm = conv.norm
        statistics = norm.running_mean, norm.running_var, norm.eps
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, *statistics, norm.weight, norm.bias
        )
        conv.norm = None
        conv.requires_grad_(False)
    return len(convolutions)
