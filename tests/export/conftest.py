"""Detectors of each kind with random weights, on whose noise images they detect something."""

from __future__ import annotations

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from torch import nn

from d2kd.export.packages import check_exporter
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
    return spread_scores(model)


def spread_scores(model: nn.Module) -> nn.Module:
    """Random weights of the last layers, so that a detector finds something, as a frozen one."""
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


def retinanet(num_classes: int = 3, channels: int = 8, **fields) -> nn.Module:
    """RetinaNet by Detectron2's config, with ResNet-18 and a narrow neck and head."""
    model = model_zoo.get_config("common/models/retinanet.py").model
    bottom_up = model.backbone.bottom_up
    bottom_up.stages.depth = 18
    del bottom_up.stages.stride_in_1x1  # BasicBlock has none
    bottom_up.stages.norm = bottom_up.stem.norm = "BN"
    model.backbone.out_channels = channels
    model.backbone.top_block.in_channels = 512
    model.head.input_shape = [ShapeSpec(channels=channels)] * 5
    model.head.conv_dims = [channels] * 2
    model.num_classes = num_classes
    model.pixel_std = [58.0, 57.0, 56.0]
    model.update(fields)
    return instantiate(model)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return toys.image(size=(height, width), seed=seed)["image"].to(torch.uint8)


@pytest.fixture
def onnx():
    """Skips the test where onnx or onnxruntime is absent, or PyTorch is too old."""
    try:
        check_exporter()
    except ImportError as error:
        pytest.skip(str(error))
    pytest.importorskip("onnxruntime", reason="needs pip install onnxruntime")
    return pytest.importorskip("onnx", reason="needs pip install onnx")
