"""The demo's picture: a grid of drawings under headings, with a legend and a caption."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from d2kd.matching import Detections, GroundTruth
from d2kd.visualize import (
    CORRECT,
    MISSED,
    WRONG,
    draw_detections,
    draw_heat,
    key_regions,
    spatial_attention,
)

__all__ = ["Column", "View", "compose_sheet", "distillation_columns"]

INK, FAINT = "#1a1a1a", "#5f6368"  # of headings, and of what is below them


class Column(NamedTuple):
    """A column of a sheet.

    Attributes:
        title: its heading.
        subtitle: the line below the heading.
        drawings: one for each row; each draws on Matplotlib's axes.
    """

    title: str
    subtitle: str
    drawings: Sequence[Callable[[Any], None]]


class View(NamedTuple):
    """One detector in `distillation_columns`.

    Attributes:
        title: the heading of its column.
        subtitle: the line below the heading.
        detections: image id -> what it detected.
    """

    title: str
    subtitle: str
    detections: Mapping[Any, Detections]


def distillation_columns(
    views: Sequence[View],
    teacher: nn.Module,
    inputs: Mapping[Any, Mapping[str, Any]],
    truths: Mapping[Any, GroundTruth],
    names: Sequence[str],
    *,
    tau: float = 0.5,
) -> list[Column]:
    """Columns for `compose_sheet`: the detections of each detector, the attention of the teacher
    and the key regions.

    Args:
        teacher: a detector that `d2kd.readers.get_reader` knows.
        inputs: image id -> one of Detectron2's input dicts, with an RGB image. Each is a row.
        truths: image id -> objects.
        names: of the classes.
        tau: temperature of the attention, as in FGD.
    """
    images = {i: x["image"].permute(1, 2, 0).cpu().numpy() for i, x in inputs.items()}

    def boxes(view: View, i: Any) -> Callable[[Any], None]:
        return lambda ax: draw_detections(ax, images[i], view.detections[i], truths[i], names)

    def attention(i: Any) -> Callable[[Any], None]:
        heat = spatial_attention(teacher, inputs[i], tau=tau)
        return lambda ax: draw_heat(ax, images[i], heat)

    def regions(i: Any) -> Callable[[Any], None]:
        weights = key_regions(teacher, inputs[i], truths[i])
        # A weight is 1 / area. Without the root, one small box would leave the large ones black.
        return lambda ax: draw_heat(ax, images[i], np.sqrt(weights), cmap="viridis", opacity=0.6)

    return [
        *(Column(v.title, v.subtitle, [boxes(v, i) for i in inputs]) for v in views),
        Column(
            "Teacher's attention", "where its finest map is strong", [attention(i) for i in inputs]
        ),
        Column("Key regions", "brighter cells weigh more", [regions(i) for i in inputs]),
    ]


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
        caption: of any length; this function breaks it into lines.
        width: of the PNG, in pixels. The height follows from the number of rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi, margin, gap, head = 100, 36, 10, 182
    side = (width - 2 * margin - gap * (len(columns) - 1)) / len(columns)
    lines = textwrap.wrap(caption, int((width - 2 * margin) / 8))
    rows = len(columns[0].drawings)
    foot = 62 + 21 * len(lines)
    height = head + rows * side + (rows - 1) * gap + foot
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)  # Without pyplot there is no window and no global state to close.

    def text(x: float, y: float, words: str, points: float, color: str = INK, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, words, size=points, color=color, va="top", **style)

    text(margin, 26, title, 20, weight="bold")
    text(margin, 64, subtitle, 12, FAINT)
    for i, column in enumerate(columns):
        left = margin + i * (side + gap)
        text(left, 112, column.title, 14, weight="bold")
        text(left, 143, column.subtitle, 11, FAINT)
        for row, draw in enumerate(column.drawings):
            bottom = height - head - row * (side + gap) - side
            place = (left / width, bottom / height, side / width, side / height)
            draw(figure.add_axes(place))
    _legend(figure, margin / width, (foot - 14) / height)
    text(margin, height - foot + 50, "\n".join(lines), 10.5, FAINT, linespacing=1.45)
    figure.savefig(path, format="png")


def _legend(figure: Any, x: float, y: float) -> None:
    """Explain the three kinds of boxes; (x, y) is the legend's top left in the figure."""
    from matplotlib.patches import Patch

    kinds: list[tuple[str, Any, str]] = [
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
        columnspacing=2.2, labelcolor=INK,
    )  # fmt: skip
