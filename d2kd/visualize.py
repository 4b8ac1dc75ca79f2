"""Draw the detections of a detector, its attention, its key regions and its uncertainty.

The maps are arrays with a value for each pixel of the image, so that `draw_heat` can lay them over
it. Boxes are x1y1x2y2 in pixels of the image. Shapes: (C, H, W) channels and cells of a pyramid
level, (h, w) pixels of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .matching import Detections, GroundTruth, match
from .methods import MCDropout
from .methods.fgd import attention, box_masks
from .readers import get_reader

__all__ = [
    "draw_detections",
    "draw_heat",
    "key_regions",
    "spatial_attention",
    "uncertainty",
    "upsample",
]

# People with any color vision can tell these apart. A dark casing makes them visible on any image.
CORRECT, WRONG, MISSED = "#19d3f3", "#ff6b2c", "#ffffff"
_CASING = "#111111"
_INK = "#1a1a1a"


@torch.no_grad()
def _level(model: nn.Module, inputs: Mapping[str, Any], level: str | None) -> tuple[Tensor, int]:
    """A pyramid map (1, C, H, W) of a detector for one image, and its stride in pixels.

    Args:
        level: name of the pyramid level; default: the finest.

    Raises:
        KeyError: the detector has no such level.
    """
    reader = get_reader(model)
    level = level or next(iter(reader.shapes))
    mode = model.training
    model.eval()
    try:
        preprocess: Any = model.preprocess_image
        knowledge = reader.run(preprocess([inputs]).tensor, {"features"})
    finally:
        model.train(mode)
    return knowledge.features[level].float(), reader.shapes[level].stride


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
    """
    features, stride = _level(model, inputs, level)
    spatial, _ = attention(features, tau)
    return upsample(spatial[0], stride, inputs["image"].shape[-2:])


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
    features, stride = _level(model, inputs, level)
    boxes = torch.as_tensor(truth.boxes, dtype=torch.float32)[None]
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    foreground, _ = box_masks(boxes, valid, features.shape[-2:], 1 / stride)
    return upsample(foreground[0], stride, inputs["image"].shape[-2:], smooth=False)


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
    features, stride = _level(model, inputs, level)
    mean, variance = dropout.uncertainty(features)
    maps = mean.abs().mean(1)[0], variance.mean(1).sqrt()[0]
    size = inputs["image"].shape[-2:]
    return upsample(maps[0], stride, size), upsample(maps[1], stride, size)


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


def _casing(width: float) -> list:
    """Matplotlib's effects that draw a dark line of this width below a colored one."""
    from matplotlib import patheffects

    return [patheffects.Stroke(linewidth=width, foreground=_CASING), patheffects.Normal()]


def _show(ax: Any, image: np.ndarray) -> None:
    """Draw an image without ticks and frame, so that a unit of the axes is a pixel."""
    height, width = image.shape[:2]
    ax.imshow(image, interpolation="bicubic", extent=(0, width, height, 0))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)


def _box(ax: Any, box: np.ndarray, color: str, *, dashed: bool = False) -> None:
    """Draw the frame of a box."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    style: dict[str, Any] = (
        {"linestyle": (0, (3, 2)), "linewidth": 1.5} if dashed else {"linewidth": 1.8}
    )
    frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, **style)
    frame.set_path_effects(_casing(3.0))
    ax.add_patch(frame)


class _Labels:
    """Writes labels next to the boxes of one picture, where they cover other labels least.

    Args:
        ax: Matplotlib's axes with the image in it.
        points: size of the text.
    """

    def __init__(self, ax: Any, points: float = 8.5):
        self.ax, self.points = ax, points
        self.taken: list[tuple[float, float, float, float]] = []  # places of labels, x1y1x2y2
        frame = ax.get_window_extent()
        self.width, self.height = ax.get_xlim()[1], ax.get_ylim()[0]
        self.per_point = self.height / frame.height * ax.figure.dpi / 72  # pixels of the image

    def put(self, box: np.ndarray, text: str, color: str) -> None:
        """Write a label at a box; `color` fills the label's background."""
        from matplotlib.patches import Rectangle

        em = self.points * self.per_point
        w, h = (0.64 * len(text) + 0.35) * em, 1.3 * em
        x1, y1, x2, y2 = box
        places = [(x1, y1 - h), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x1, y1), (x2 - w, y1),
                  (x2, y1), (x1 - w, y1), (x2, y2 - h), (x1 - w, y2 - h)]  # fmt: skip
        places = [
            (min(max(x, 0), self.width - w), min(max(y, 0), self.height - h)) for x, y in places
        ]
        covered = [
            sum(_intersection((x, y, x + w, y + h), t) for t in self.taken) for x, y in places
        ]
        x, y = places[int(np.argmin(covered))]
        self.taken.append((x, y, x + w, y + h))
        self.ax.add_patch(Rectangle((x, y), w, h, color=color, linewidth=0, zorder=4))
        style = {"ha": "center", "va": "center_baseline", "zorder": 5, "color": _INK}
        self.ax.text(x + w / 2, y + h / 2, text, fontsize=self.points, weight="bold", **style)


def _intersection(a: Sequence[float], b: Sequence[float]) -> float:
    """Area of the intersection of two boxes, in square pixels."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def draw_detections(
    ax: Any, image: np.ndarray, detections: Detections, truth: GroundTruth, names: Sequence[str]
) -> None:
    """Draw an image with its correct detections, its wrong detections and its missed objects.

    A detection is correct if `d2kd.matching.match` gives it an object: of its class, with an IoU of
    at least 0.5. Missed objects are dashed, and their label ends with "?".

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3), uint8, RGB.
        detections: of a detector, D of them.
        truth: the objects of the image.
        names: names of the classes, by class index.
    """
    _show(ax, image)
    result, labels = match(detections, truth), _Labels(ax)
    for box in truth.boxes[~result.found]:
        _box(ax, box, MISSED, dashed=True)
    for i in np.argsort(detections.scores, kind="stable"):
        _box(ax, detections.boxes[i], CORRECT if result.correct[i] else WRONG)
    for i in np.argsort(-detections.scores, kind="stable"):
        text = f"{names[detections.classes[i]]} {100 * detections.scores[i]:.0f}%"
        labels.put(detections.boxes[i], text, CORRECT if result.correct[i] else WRONG)
    for box, label in zip(truth.boxes[~result.found], truth.classes[~result.found], strict=True):
        labels.put(box, f"{names[label]}?", MISSED)


def draw_heat(
    ax: Any, image: np.ndarray, heat: np.ndarray, *, cmap: str = "inferno", opacity: float = 0.85
) -> None:
    """Draw values over a gray image. Higher values are brighter and less transparent.

    The colors span the values of this map, so that the colors of two maps cannot be compared.

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3), uint8, RGB.
        heat: (h, w), finite.
        cmap: name of a Matplotlib color map.
        opacity: in [0, 1], of the higher half of the values; the lowest value is transparent.
    """
    from matplotlib import colormaps

    gray = image @ np.array([0.299, 0.587, 0.114]) / 255
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / max(high - low, 1e-12)
    cover = (opacity * np.minimum(1, 2 * scaled))[..., None]
    mixed = (1 - cover) * (0.75 * gray)[..., None] + cover * colormaps[cmap](scaled)[..., :3]
    _show(ax, mixed.clip(0, 1))
