"""The picture of a comparison: AP of each row."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping

from .statistics import Results

__all__ = ["picture"]


def picture(results: Results, against: Mapping[str, str]) -> bytes:
    """A PNG of AP: mean, standard deviation and single seeds of each row.

    Args:
        results, against: see `table`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {name: [run["AP"] for run in by_seed.values()] for name, by_seed in results.items()}
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for y, values in enumerate(rows.values()):
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            mean = statistics.mean(values)
            ax.errorbar(mean, y, xerr=deviation, fmt="o", color="#0b6aa2", capsize=4, zorder=3)
            ax.plot(values, [y + 0.22] * len(values), ".", color="#5f6368", markersize=5)
    for base in dict.fromkeys(against.values()):
        if rows.get(base):
            ax.axvline(statistics.mean(rows[base]), color="#b0b4b8", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name in rows])
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    ax.set_xlabel("AP: mean ± standard deviation; gray dots: single seeds")
    ax.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
