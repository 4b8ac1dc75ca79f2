"""Draw on Matplotlib's axes: boxes, maps, pseudo labels, Gaussians and ranks.

Boxes are x1y1x2y2 in pixels of the image. Shapes: (h, w) pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..matching import Detections, GroundTruth, match
from .pictures import PseudoLabels

__all__ = [
    "CORRECT",
    "LABEL",
    "MISSED",
    "WRONG",
    "draw_candidates",
    "draw_detections",
    "draw_gaussians",
    "draw_heat",
    "draw_labels",
    "draw_levels",
    "draw_message",
    "draw_ranks",
]

# People with any color vision can tell these apart. A dark casing makes them visible on any image.
CORRECT, WRONG, MISSED, LABEL = "#19d3f3", "#ff6b2c", "#ffffff", "#ffd23f"
_CASING = "#111111"
_INK = "#1a1a1a"


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
        style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": 5}
        style |= {"color": _INK, "parse_math": False}
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
    ax: Any,
    image: np.ndarray,
    heat: np.ndarray,
    *,
    cmap: str = "inferno",
    opacity: float = 0.85,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw values over a gray image. Higher values are brighter and less transparent.

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3), uint8, RGB.
        heat: (h, w), finite.
        cmap: name of a Matplotlib color map.
        opacity: in [0, 1], of the higher half of the values; the lowest value is transparent.
        limits: the values that have the first and the last color. Default: the lowest and the
            highest of this map, so that the colors of two maps cannot be compared.
    """
    from matplotlib import colormaps

    low, high = (heat.min(), heat.max()) if limits is None else limits
    scaled = ((heat - low) / max(high - low, 1e-12)).clip(0, 1)
    cover = (opacity * np.minimum(1, 2 * scaled))[..., None]
    mixed = (1 - cover) * _gray(image) + cover * colormaps[cmap](scaled)[..., :3]
    _show(ax, mixed.clip(0, 1))


def _gray(image: np.ndarray) -> np.ndarray:
    """(h, w, 1) in [0, 1], a dark gray version of an RGB image."""
    return 0.75 * (image @ np.array([0.299, 0.587, 0.114]) / 255)[..., None]


def draw_levels(
    ax: Any, image: np.ndarray, heats: Mapping[str, np.ndarray], highest: Mapping[str, float]
) -> None:
    """Draw a small picture for each level of a pyramid. The color of 0 is transparent.

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3), uint8, RGB.
        heats: level name -> (h, w), >= 0.
        highest: level name -> the value that has the last color.
    """
    ax.axis("off")
    columns = math.ceil(math.sqrt(len(heats)))
    side = 1 / columns
    for i, (level, heat) in enumerate(heats.items()):
        row, column = divmod(i, columns)
        inner = ax.inset_axes((column * side, 1 - (row + 1) * side, 0.97 * side, 0.97 * side))
        draw_heat(inner, image, heat, limits=(0.0, highest[level]))
        _write(inner, 0.04, 0.04, level, ha="left", va="bottom")


def draw_labels(ax: Any, image: np.ndarray, labels: PseudoLabels, names: Sequence[str]) -> None:
    """Draw pseudo labels with their scores; regions to ignore are gray and hatched.

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3), uint8, RGB.
        labels: of this image.
        names: names of the classes, by class index.
    """
    from matplotlib.patches import Rectangle

    _show(ax, image)
    for x1, y1, x2, y2 in labels.ignored:
        place: Any = ((x1, y1), x2 - x1, y2 - y1)
        ax.add_patch(Rectangle(*place, facecolor="#808080", alpha=0.55, linewidth=0))
        ax.add_patch(
            Rectangle(*place, fill=False, hatch="////", edgecolor="#e0e0e0", linewidth=0.8)
        )
    for box in labels.boxes.boxes:
        _box(ax, box, LABEL)
    texts = _Labels(ax)
    for i in np.argsort(-labels.boxes.scores, kind="stable"):
        text = f"{names[labels.boxes.classes[i]]} {100 * labels.boxes.scores[i]:.0f}%"
        texts.put(labels.boxes.boxes[i], text, LABEL)


def draw_gaussians(
    ax: Any,
    image: np.ndarray,
    boxes: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    gaussians: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Draw weighted locations as dots, and Gaussians as ellipses of one and two deviations.

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3), uint8, RGB.
        boxes: (G, 4), the objects.
        points: (M, 2), x and y of the locations in pixels.
        weights: (M,) in [0, 1].
        gaussians: mean (2,) and covariance (2, 2) of each, in pixels.
    """
    from matplotlib.patches import Ellipse

    _show(ax, np.repeat(_gray(image), 3, 2))
    for box in boxes:
        _box(ax, box, MISSED, dashed=True)
    order = np.argsort(weights, kind="stable")  # the largest on top
    style: dict[str, Any] = dict(cmap="viridis", vmin=0, vmax=1, s=14, zorder=3)
    ax.scatter(*points[order].T, c=weights[order], edgecolors=_CASING, linewidths=0.4, **style)
    for mean, covariance in gaussians:
        variances, axes = np.linalg.eigh(covariance)  # ascending
        angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
        for deviations in (1, 2):
            long, short = 2 * deviations * np.sqrt(variances[::-1])
            outline = Ellipse(tuple(mean), long, short, angle=angle, fill=False, edgecolor=WRONG)
            outline.set(linewidth=1.4, zorder=4, path_effects=_casing(2.4))
            ax.add_patch(outline)


def draw_candidates(
    ax: Any, image: np.ndarray, box: np.ndarray, points: np.ndarray, ranks: np.ndarray
) -> None:
    """Draw the candidates of an object as dots with the colors of `draw_ranks`.

    Args:
        ax: Matplotlib's axes.
        image: (h, w, 3), uint8, RGB.
        box: (4,), the object.
        points: (M, 2), x and y of the candidates in pixels.
        ranks: (M,), from 1.
    """
    _show(ax, np.repeat(_gray(image), 3, 2))
    _box(ax, box, MISSED, dashed=True)
    order = np.argsort(-ranks)  # the best on top
    style: dict[str, Any] = dict(edgecolors=MISSED, linewidths=0.7, s=30, zorder=3)
    ax.scatter(*points[order].T, c=_rank_colors(ranks)[order], **style)


def _rank_colors(ranks: np.ndarray) -> np.ndarray:
    """(M, 4) RGBA. The best of M candidates is dark, the last one is bright."""
    from matplotlib import colormaps

    # The last tenth of the colors is a yellow that cannot be seen on white.
    return colormaps["plasma"](0.9 * (ranks - 1) / max(len(ranks) - 1, 1))


def draw_ranks(ax: Any, ranks: Mapping[str, np.ndarray], reference: str, *, most: int = 30) -> None:
    """Draw how several networks rank the candidates of an object, with a line for each candidate.

    Lines that cross are candidates that two networks rank differently. Below each network is its
    rank correlation (Spearman) with the reference.

    Args:
        ax: Matplotlib's axes.
        ranks: name of a network -> (M,), the rank of each candidate from 1, the best.
        reference: the network whose ranks give the colors.
        most: candidates that are drawn, the best ones of the reference.
    """
    from scipy.stats import spearmanr

    own, last = ranks[reference], len(ranks[reference])
    ax.axis("off")
    ax.set(xlim=(-0.55, len(ranks) - 0.45), ylim=(last + 0.15 * last, 1 - 0.15 * last))
    table, colors = np.stack(list(ranks.values())), _rank_colors(own)
    for line, color in zip(table.T[own <= most], colors[own <= most], strict=True):
        ax.plot(line, color=color, linewidth=1.3, marker="o", markersize=3.5)
    style: dict[str, Any] = dict(fontsize=8, color=_INK)
    for rank in (1, last):
        ax.text(-0.15, rank, str(rank), ha="right", va="center", **style)
    for i, (name, values) in enumerate(ranks.items()):
        ax.text(i, 1 - 0.06 * last, name, ha="center", va="bottom", **style)
        if name != reference:
            text = f"correlation {spearmanr(values, own).statistic:.2f}"
            ax.text(i, last + 0.06 * last, text, ha="center", va="top", **style)


def draw_message(ax: Any, text: str) -> None:
    """Write why there is nothing to draw."""
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, transform=ax.transAxes)


def _write(ax: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Write on a dark background; (x, y) is a place in the axes, from 0 to 1."""
    box = dict(facecolor=_CASING, alpha=0.7, edgecolor="none", pad=1.5)
    ax.text(x, y, text, transform=ax.transAxes, color=MISSED, fontsize=7, bbox=box, **style)
