"""The scene of the reference arrays, and small detectors for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from d2kd.detectors import Locations, PointDetector, PointHead
from d2kd.targets import Targets
from tests import toys

# Inputs and outputs of the released dense heads for a batch of 2 images, 256 x 320 pixels.
REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "dense_reference.npz")
SIZES = [tuple(map(int, size)) for size in REFERENCE["scene.img_hw"]]
GRIDS = [tuple(map(int, size)) for size in REFERENCE["scene.feat_hw"]]
K = 5


def reference(name: str) -> Tensor:
    return torch.from_numpy(REFERENCE[name])


def instances(boxes: Tensor, classes: Tensor, size: tuple[int, int]) -> Instances:
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)


def truth() -> list[Instances]:
    return [
        instances(reference(f"scene.gt{i}"), reference(f"scene.label{i}"), SIZES[i])
        for i in range(2)
    ]


def targets() -> Targets:
    return Targets.from_instances(truth(), "cpu")


def maps() -> list[Tensor]:
    """Pyramid maps of the scene's sizes, filled with zeros."""
    return [torch.zeros(2, 1, *grid) for grid in GRIDS]


def unflatten(x: Tensor) -> list[Tensor]:
    """(N, R, D) to (N, D, H, W) of each level, as a head returns them."""
    levels = x.split([h * w for h, w in GRIDS], 1)
    return [x.unflatten(1, grid).permute(0, 3, 1, 2) for x, grid in zip(levels, GRIDS, strict=True)]


def images() -> ImageList:
    return ImageList(torch.zeros(2, 3, 256, 320), SIZES)


def detector(
    kind: type[PointDetector], head: dict | None = None, num_classes: int = K, **fields
) -> PointDetector:
    """A small detector on p3 to p7; `head` holds further fields of `PointHead`."""
    return kind(
        backbone=toys.pyramid(norm="BN"),
        head=PointHead(
            **{
                "input_shape": [ShapeSpec(channels=8)] * 5,
                "num_classes": num_classes,
                "conv_dims": [8],
                "norm": lambda channels: nn.GroupNorm(2, channels),
                **(head or {}),
            }
        ),
        num_classes=num_classes,
        pixel_mean=[110.0, 115.0, 120.0],
        pixel_std=[58.0, 57.0, 56.0],
        **fields,
    )


class Plain(PointDetector):
    """A detector whose box regression is the box itself, in pixels."""

    def decode(self, locations: Locations, regression: Tensor) -> Tensor:
        return regression


def plain(**fields) -> Plain:
    return detector(Plain, **fields)


def located(model: PointDetector) -> tuple[Locations, Tensor]:
    """The scene's locations, and the mask of those in the image."""
    locations = model.locations(maps())
    return locations, model.in_image_mask(locations, targets().sizes, maps())


def close(value: Tensor, name: str, rtol: float = 1e-4, atol: float = 0.0) -> None:
    torch.testing.assert_close(value, reference(name), rtol=rtol, atol=atol)


def close_gradient(value: Tensor, name: str) -> None:
    """Check a gradient to a thousandth of its largest value."""
    expected = reference(name)
    assert (value - expected).abs().max() <= 1e-3 * expected.abs().max()


def close_detections(found: list[Instances], name: str) -> None:
    """Check boxes to a thousandth of a pixel, scores to 1e-5, and classes exactly."""
    for i, detections in enumerate(found):
        expected = reference(f"{name}.det{i}")
        boxes, scores = detections.pred_boxes.tensor, detections.scores
        torch.testing.assert_close(boxes, expected[:, :4], rtol=0, atol=1e-3)
        torch.testing.assert_close(scores, expected[:, 4], rtol=0, atol=1e-5)
        assert torch.equal(detections.pred_classes, reference(f"{name}.det_label{i}"))
