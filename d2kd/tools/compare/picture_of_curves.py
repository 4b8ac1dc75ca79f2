"""The picture of AP over the length of a training: in steps, and in minutes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .curves import in_order, mean_ap
from .history import History
from .statistics import Figures, Gap, Results, spread

__all__ = ["Point", "picture_of_curves", "points_of", "way_of"]

MARKERS = "osD^vP*X"


class Point(NamedTuple):
    """A row as a point of its curve.

    Args:
        steps: of its training.
        minutes: of its training, the mean over seeds; None if unknown.
        mean, deviation: of the AP at the end, over seeds; the deviation of one seed is 0.
    """

    steps: int
    minutes: float | None
    mean: float
    deviation: float


def points_of(results: Results, rows: Sequence[str]) -> list[Point]:
    """The points of a curve, the shortest training first."""
    points = []
    for steps, row in in_order(results, rows):
        runs: list[Figures] = list(results[row].values())
        minutes = [run["train min"] for run in runs if "train min" in run]
        values = [run["AP"] for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        time = statistics.mean(minutes) if minutes else None
        points.append(Point(steps, time, statistics.mean(values), deviation))
    return points


def way_of(histories: Sequence[History]) -> list[tuple[int, float]]:
    """(steps, mean AP over seeds) of the evaluations that all runs of a row have made."""
    scores = [dict(history.points) for history in histories if history.points]
    shared = set.intersection(*map(set, scores)) if scores else set()
    return [(steps, statistics.mean(s[steps] for s in scores)) for steps in sorted(shared)]


def picture_of_curves(
    results: Results,
    curves: Mapping[str, Sequence[str]],
    histories: Mapping[str, Sequence[History]],
    gaps: Mapping[str, Gap],
) -> bytes | None:
    """A PNG with AP over steps and AP over minutes of training.

    The thick lines join final AP, of trainings of different length. The thin ones are evaluations
    on the way. With a schedule that lets the learning rate decay, they lie below what a training of
    that length would reach.

    Args:
        results: see `table`.
        curves: name -> rows, see `group_rows`.
        histories: row -> the histories of its runs.
        gaps: distilled row -> the rows between which it lies. Their teachers are horizontal lines.

    Returns:
        None if the length of no training is known.
    """
    teachers = dict.fromkeys(gap.teacher for gap in gaps.values())
    teachers |= dict.fromkeys(name for name, by_seed in results.items() if None in by_seed)
    drawn = {
        name: points
        for name, rows in curves.items()
        if not teachers.keys() & set(rows) and (points := points_of(results, rows))
    }
    if not drawn:
        return None
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(4.2, 0.3 * len(drawn) + 1)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    colors = colormaps["tab10" if len(drawn) <= 10 else "tab20"]
    for i, (name, points) in enumerate(drawn.items()):
        color = colors(i % colors.N)
        for panel, xs in zip(panels, _both(points), strict=True):
            known = [(x, p) for x, p in zip(xs, points, strict=True) if x is not None]
            panel.errorbar(
                [x for x, _ in known],
                [p.mean for _, p in known],
                yerr=[p.deviation for _, p in known],
                fmt=f"{MARKERS[i % len(MARKERS)]}-",
                capsize=3,
                markersize=5,
                label=_plain(name),
                color=color,
                zorder=3,
            )
        for point, (_, row) in zip(points, in_order(results, curves[name]), strict=True):
            way = way_of(histories.get(row, ()))
            scale = None if point.minutes is None else point.minutes / point.steps
            for panel, unit in zip(panels, (1, scale), strict=True):
                if unit is not None and len(way) > 1:
                    panel.plot(
                        [steps * unit for steps, _ in way],
                        [ap for _, ap in way],
                        linewidth=0.8,
                        alpha=0.45,
                        color=color,
                    )
    for name in teachers:
        ap = mean_ap(results, name)
        for panel in panels if ap is not None else ():
            words = f"{_plain(name)} {spread([run['AP'] for run in results[name].values()])}"
            panel.axhline(ap, color="#5f6368", linestyle="--", linewidth=1, label=words)
    most = max(
        int(run.get("at a time", 1)) for by_seed in results.values() for run in by_seed.values()
    )
    shared = f", up to {most} runs at a time" if most > 1 else ""
    for panel, label in zip(panels, ("steps", f"minutes of training{shared}"), strict=True):
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0].set_ylabel("AP")
    panels[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    seeds = max(len(results.get(row, {})) for name in drawn for row in curves[name])
    final = "Final AP, mean ± standard deviation" if seeds > 1 else "Final AP, one seed"
    figure.suptitle(f"{final}; thin: AP during a training", fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _both(points: Sequence[Point]) -> tuple[list[float | None], list[float | None]]:
    return [p.steps for p in points], [p.minutes for p in points]


def _plain(name: str) -> str:
    """A name without what matplotlib would read as mathematics, or as a wish to be left out."""
    return name.replace("$", r"\$").lstrip("_")
