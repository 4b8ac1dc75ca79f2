"""A sheet: a grid of drawings under headings, with a caption and a legend of boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .draw import CORRECT, MISSED, WRONG

__all__ = ["Column", "compose_sheet", "render_sheet"]

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


def compose_sheet(path: str | Path, columns: Sequence[Column], **texts: Any) -> None:
    """Write a PNG: a grid of drawings under headings, a legend and a caption.

    Args:
        columns: with the same number of drawings.
        texts: see `render_sheet`.
    """
    _figure(columns, **texts).savefig(path, format="png")


def render_sheet(columns: Sequence[Column], **texts: Any) -> np.ndarray:
    """The same as an array.

    Args:
        columns: with the same number of drawings.
        texts: title, subtitle and caption of any length, which is broken into lines; legend,
            whether the colors of correct and wrong detections are explained, by default True; and
            width, in pixels. Default: 300 for each column, and more for few columns. The height
            follows from the number of rows.

    Returns:
        (h, w, 3), uint8, RGB.
    """
    canvas = _figure(columns, **texts).canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _figure(
    columns: Sequence[Column],
    *,
    title: str,
    subtitle: str,
    caption: str,
    legend: bool = True,
    width: int | None = None,
) -> Any:
    """A Matplotlib figure of a sheet; see `render_sheet`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = width or max(1000, min(1800, 420 * len(columns)), 300 * len(columns))
    dpi, margin, gap, head = 100, 36, 10, 182
    side = min(480.0, (width - 2 * margin - gap * (len(columns) - 1)) / len(columns))
    lines = textwrap.wrap(caption, int((width - 2 * margin) / 8))
    rows = len(columns[0].drawings)
    below = 12 + 21 * len(lines)  # from the top of the caption
    foot = below + (50 if legend else 14)
    height = head + rows * side + (rows - 1) * gap + foot
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)  # Without pyplot there is no window and no global state to close.

    def text(x: float, y: float, words: str, points: float, color: str = INK, **style: Any) -> None:
        place = x / width, 1 - y / height
        # A name may have two dollars, which Matplotlib would take for a formula.
        style = dict(style, parse_math=False, va="top")
        figure.text(*place, words, size=points, color=color, **style)

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
    if legend:
        _legend(figure, margin / width, (foot - 14) / height)
    text(margin, height - below, "\n".join(lines), 10.5, FAINT, linespacing=1.45)
    return figure


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
