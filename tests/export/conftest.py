"""Detectors of each kind with random weights, on whose noise images they detect something."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import toys


def make(name: str) -> nn.Module:
    """A detector in evaluation mode whose scores are spread over [0, 1]."""
    torch.manual_seed(0)
    if name in ("retinanet", "fcos", "rcnn", "cascade"):
        model = getattr(toys, name)()
        # With its standard deviation of 1, scores are exactly 1, and detections tie.
        model.pixel_std.fill_(58)
    else:
        model = toys.point(name)
    for module in model.modules():
        for attribute in ("cls_score", "objectness_logits"):
            layer = getattr(module, attribute, None)
            if isinstance(layer, nn.Module):
                nn.init.normal_(layer.weight, std=0.3)
                nn.init.normal_(layer.bias, std=0.5)
    for box in ("bbox_pred", "anchor_deltas"):
        for module in model.modules():
            layer = getattr(module, box, None)
            if isinstance(layer, nn.Module):
                nn.init.normal_(layer.weight, std=0.03)
    return model.eval().requires_grad_(False)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return toys.image(size=(height, width), seed=seed)["image"].to(torch.uint8)


@pytest.fixture
def onnx():
    """Skips the test where onnx or onnxruntime is absent."""
    pytest.importorskip("onnxruntime", reason="needs pip install onnxruntime")
    return pytest.importorskip("onnx", reason="needs pip install onnx")
