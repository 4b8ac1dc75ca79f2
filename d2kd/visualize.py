"""Pictures of what detectors find and of what their teacher looks at.

Boxes are x1y1x2y2 in pixels of the image. Shapes: (H, W) cells of a pyramid level, (h, w) pixels of
an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .matching import Detections, GroundTruth, match
from .methods import MCDropout
from .methods.fgd import attention, box_masks
from .readers import get_reader

__all__ = [
    "Column",
    "View",
    "compose_sheet",
    "distillation_columns",
    "draw_detections",
    "draw_heat",
    "key_regions",
    "spatial_attention",
    "uncertainty",
    "upsample",
]

# Told apart by people of any colour vision, and seen on any photograph with a dark casing.
CORRECT, WRONG, MISSED = "#19d3f3", "#ff6b2c", "#ffffff"
_CASING = "#111111"
_INK, _FAINT = "#1a1a1a", "#5f6368"


@torch.no_grad()
def _level(model: nn.Module, inputs: Mapping[str, Any], level: str | None) -> tuple[Tensor, int]:
    """A detector's pyramid map (1, C, H, W) of one image, and its stride in pixels."""
    reader = get_reader(model)
    level = level or next(iter(reader.shapes))
    mode = model.training
    model.eval()
    try:
        seen = reader.run(model.preprocess_image([inputs]).tensor, {"features"})
    finally:
        model.train(mode)
    return seen.features[level].float(), reader.shapes[level].stride


def spatial_attention(
    model: nn.Module, inputs: Mapping[str, Any], *, level: str | None = None, tau: float = 0.5
) -> np.ndarray:
    """FGD's spatial attention of a detector over one image; its mean over cells is 1.

    Args:
        inputs: one of Detectron2's input dicts.
        level: name of the pyramid level; default: the finest.
        tau: temperature, as FGD's.

    Returns:
        (h, w), interpolated to the pixels of the input image.
    """
    features, stride = _level(model, inputs, level)
    spatial, _ = attention(features, tau)
    return upsample(spatial[0], stride, inputs["image"].shape[-2:])


def key_regions(
    model: nn.Module, inputs: Mapping[str, Any], truth: GroundTruth, *, level: str | None = None
) -> np.ndarray:
    """FGD's foreground mask of one image: 1 / (number of cells of the box), 0 outside boxes.

    Returns:
        (h, w), each cell drawn as a square of its stride.
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
    """What UET's Monte Carlo dropout makes of a teacher's map of one image, in one draw.

    Its noise is multiplicative: where features are strong, they are uncertain too.

    Returns:
        mean over channels of the absolute mean of the samples, and root of the mean over channels
        of their variance, both (h, w), to be drawn with `draw_heat`.
    """
    features, stride = _level(model, inputs, level)
    mean, variance = dropout.uncertainty(features)
    maps = mean.abs().mean(1)[0], variance.mean(1).sqrt()[0]
    return tuple(upsample(x, stride, inputs["image"].shape[-2:]) for x in maps)


def upsample(cells: Tensor, stride: int, size: Sequence[int], *, smooth: bool = True) -> np.ndarray:
    """Lay cells over the image that they were computed from.

    Cell (i, j) covers pixels [i * stride, (i + 1) * stride) x [j * stride, (j + 1) * stride).

    Args:
        cells: (H, W), of the padded input.
        size: height and width of the image without padding, in pixels.
        smooth: interpolate between the cells' centres; else each cell is a square.

    Returns:
        (h, w).
    """
    mode = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    pixels = F.interpolate(cells.float()[None, None].cpu(), scale_factor=float(stride), **mode)
    return pixels[0, 0, : size[0], : size[1]].numpy()


def _casing(width: float) -> list:
    from matplotlib import patheffects

    return [patheffects.Stroke(linewidth=width, foreground=_CASING), patheffects.Normal()]


def _show(ax, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    ax.imshow(image, interpolation="bicubic", extent=(0, width, height, 0))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)


def _box(ax, box: np.ndarray, color: str, *, dashed: bool = False) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    style = {"linestyle": (0, (3, 2)), "linewidth": 1.5} if dashed else {"linewidth": 1.8}
    frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, **style)
    frame.set_path_effects(_casing(3.0))
    ax.add_patch(frame)


class _Labels:
    """Writes labels at boxes of one picture so that none covers another."""

    def __init__(self, ax, points: float = 8.5):
        self.ax, self.points, self.taken = ax, points, []
        frame = ax.get_window_extent()
        self.width, self.height = ax.get_xlim()[1], ax.get_ylim()[0]
        self.per_point = self.height / frame.height * ax.figure.dpi / 72  # pixels of the image

    def put(self, box: np.ndarray, text: str, color: str) -> None:
        em = self.points * self.per_point
        w, h = (0.64 * len(text) + 0.35) * em, 1.3 * em
        x1, y1, x2, y2 = box
        places = [(x1, y1 - h), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x1, y1), (x2 - w, y1),
                  (x2, y1), (x1 - w, y1), (x2, y2 - h), (x1 - w, y2 - h)]  # fmt: skip
        places = [
            (min(max(x, 0), self.width - w), min(max(y, 0), self.height - h)) for x, y in places
        ]
        covered = [sum(_shared((x, y, x + w, y + h), t) for t in self.taken) for x, y in places]
        x, y = places[int(np.argmin(covered))]
        self.taken.append((x, y, x + w, y + h))
        from matplotlib.patches import Rectangle

        self.ax.add_patch(Rectangle((x, y), w, h, color=color, linewidth=0, zorder=4))
        style = {"ha": "center", "va": "center_baseline", "zorder": 5, "color": _INK}
        self.ax.text(x + w / 2, y + h / 2, text, fontsize=self.points, weight="bold", **style)


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share, in square pixels."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def draw_detections(
    ax, image: np.ndarray, detections: Detections, truth: GroundTruth, names: Sequence[str]
) -> None:
    """Draw an image with its correct and wrong detections and its missed objects.

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3) uint8 RGB.
        names: of the classes.
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
    ax, image: np.ndarray, heat: np.ndarray, *, cmap: str = "inferno", opacity: float = 0.85
) -> None:
    """Draw values over a grey image: the higher, the brighter and the less transparent.

    Args:
        heat: (h, w), >= 0.
        opacity: of the higher half of the values, in [0, 1]; the lowest is transparent.
    """
    from matplotlib import colormaps

    grey = image @ np.array([0.299, 0.587, 0.114]) / 255
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / max(high - low, 1e-12)
    cover = (opacity * np.minimum(1, 2 * scaled))[..., None]
    mixed = (1 - cover) * (0.75 * grey)[..., None] + cover * colormaps[cmap](scaled)[..., :3]
    _show(ax, mixed.clip(0, 1))


class Column(NamedTuple):
    """A column of a sheet: its heading, the line below that, and one drawing a row."""

    title: str
    subtitle: str
    drawings: Sequence[Callable[[Any], None]]


def compose_sheet(
    path: str | Path,
    columns: Sequence[Column],
    *,
    title: str,
    subtitle: str,
    caption: str,
    width: int = 1800,
) -> None:
    """Write a PNG: a grid of drawings under headings, a legend and a caption.

    Args:
        caption: any length; it is broken into lines here.
        width: of the PNG, in pixels; its height follows.
    """
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi, margin, gap, head = 100, 36, 10, 182
    side = (width - 2 * margin - gap * (len(columns) - 1)) / len(columns)
    lines = textwrap.wrap(caption, int((width - 2 * margin) / 8))
    rows = len(columns[0].drawings)
    foot = 62 + 21 * len(lines)
    height = head + rows * side + (rows - 1) * gap + foot
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)  # no window and no global state: nothing to close

    def text(x: float, y: float, words: str, points: float, color: str = _INK, **style) -> None:
        figure.text(x / width, 1 - y / height, words, size=points, color=color, va="top", **style)

    text(margin, 26, title, 20, weight="bold")
    text(margin, 64, subtitle, 12, _FAINT)
    for i, column in enumerate(columns):
        left = margin + i * (side + gap)
        text(left, 112, column.title, 14, weight="bold")
        text(left, 143, column.subtitle, 11, _FAINT)
        for row, draw in enumerate(column.drawings):
            bottom = height - head - row * (side + gap) - side
            place = (left / width, bottom / height, side / width, side / height)
            draw(figure.add_axes(place))
    _legend(figure, margin / width, (foot - 14) / height)
    text(margin, height - foot + 50, "\n".join(lines), 10.5, _FAINT, linespacing=1.45)
    figure.savefig(path, format="png")


class View(NamedTuple):
    """One detector for `distillation_columns`: its heading, the line below that, and what it
    found, by image id."""

    title: str
    subtitle: str
    found: Mapping[Any, Detections]


def distillation_columns(
    views: Sequence[View],
    teacher: nn.Module,
    inputs: Mapping[Any, Mapping[str, Any]],
    truths: Mapping[Any, GroundTruth],
    names: Sequence[str],
    *,
    tau: float = 0.5,
) -> list[Column]:
    """Columns for `compose_sheet`: each detector's detections, the teacher's attention and the
    key regions.

    Args:
        teacher: a detector that `d2kd.readers.get_reader` knows.
        inputs: image id -> one of Detectron2's input dicts, with an RGB image; a row each.
        truths: image id -> true boxes.
        names: of the classes.
        tau: temperature of the attention, as FGD's.
    """
    images = {i: x["image"].permute(1, 2, 0).cpu().numpy() for i, x in inputs.items()}

    def detections(found: Mapping[Any, Detections], i: Any) -> Callable[[Any], None]:
        return lambda ax: draw_detections(ax, images[i], found[i], truths[i], names)

    def looks(i: Any) -> Callable[[Any], None]:
        heat = spatial_attention(teacher, inputs[i], tau=tau)
        return lambda ax: draw_heat(ax, images[i], heat)

    def regions(i: Any) -> Callable[[Any], None]:
        weights = key_regions(teacher, inputs[i], truths[i])
        # On the scale of a box's side: otherwise one small box leaves the large ones black.
        return lambda ax: draw_heat(ax, images[i], np.sqrt(weights), cmap="viridis", opacity=0.6)

    return [
        *(Column(v.title, v.subtitle, [detections(v.found, i) for i in inputs]) for v in views),
        Column("Teacher's attention", "where its finest map is strong", [looks(i) for i in inputs]),
        Column("Key regions", "brighter cells weigh more", [regions(i) for i in inputs]),
    ]


def _legend(figure, x: float, y: float) -> None:
    """Explain the three kinds of boxes; (x, y) is the legend's top left in the figure."""
    from matplotlib.patches import Patch

    kinds = [
        (CORRECT, "-", "correct: right class, IoU ≥ 0.5"),
        (WRONG, "-", "wrong: other class, wrong place or found twice"),
        (MISSED, (0, (2, 1.3)), "missed"),
    ]
    handles = [
        Patch(facecolor="#45494d", edgecolor=color, linestyle=style, linewidth=1.8, label=label)
        for color, style, label in kinds
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(x, y), ncol=3, frameon=False,
        fontsize=11, borderpad=0, borderaxespad=0, handlelength=1.6, handleheight=1.2,
        columnspacing=2.2, labelcolor=_INK,
    )  # fmt: skip
