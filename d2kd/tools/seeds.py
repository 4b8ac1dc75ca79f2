"""What several seeds say together: spread, paired tests, table and picture. A part of compare.py.

Results are {name: {seed: {title: value}}}, finished runs only; see `runs.Run.result`. `against` is
{name: name of the row that it is compared with}; a row that is compared with none is not in it.
"""

from __future__ import annotations

import csv
import io
import math
import shlex
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tabulate import tabulate

from d2kd.tools.runs import METRICS, TASKS, Run

SCORES = [f"{prefix}{metric}" for prefix in TASKS.values() for metric in METRICS]
MEASURES = ["s/iter", "data s", "GPU MiB", "RSS MiB"]

Results = Mapping[str, Mapping[int, Mapping[str, float]]]


class Difference(NamedTuple):
    """Mean of paired differences; from three pairs on the half width of its 95 % confidence
    interval and the two-sided p, both by Student's t."""

    mean: float
    half: float | None = None
    p: float | None = None

    def __str__(self) -> str:
        if self.half is None or self.p is None:
            return f"{self.mean:+.1f}"
        p = "p < 0.001" if self.p < 0.001 else f"p {self.p:.2g}"
        return f"{self.mean:+.1f} ± {self.half:.1f} ({p})"


def paired(values: Sequence[float], base: Sequence[float]) -> Difference | None:
    """Test whether values differ from those of the same seeds in another row; None for no seeds."""
    differences = [v - b for v, b in zip(values, base, strict=True)]
    n = len(differences)
    if n < 3:
        return Difference(statistics.mean(differences)) if n else None
    from scipy.stats import t  # not at the top: it is slow to import

    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(n)
    ratio = abs(mean) / error if error else (math.inf if mean else 0.0)
    return Difference(mean, float(t.ppf(0.975, n - 1)) * error, 2 * float(t.sf(ratio, n - 1)))


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, where there are two or more."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def difference(results: Results, name: str, base: str, metric: str) -> Difference | None:
    """Of two rows, over the seeds that both have finished."""
    one, other = results[name], results[base]
    seeds = [s for s in one if s in other and metric in one[s] and metric in other[s]]
    return paired([one[s][metric] for s in seeds], [other[s][metric] for s in seeds])


def table(
    results: Results,
    against: Mapping[str, str],
    seeds: Sequence[int],
    columns: Sequence[str] | None = None,
) -> str:
    """Markdown: a row for each entry, and below it how to read it.

    Args:
        seeds: all that the entries were to be trained with.
        columns: some of `SCORES` and `MEASURES`; default: all that there are values for.
    """
    titles = [title for title in _titles(results) if title in (columns or (*SCORES, *MEASURES))]
    scores = [title for title in titles if title in SCORES]
    measures = [title for title in titles if title not in SCORES]
    bases = set(against.values())
    tested = [metric for metric in scores if metric.endswith("AP") and bases]
    shared = next(iter(bases)) if len(bases) == 1 else None
    rows = []
    for name, by_seed in results.items():
        cell = {title: _cell(title, [r.get(title) for r in by_seed.values()]) for title in titles}
        gains = []
        for metric in tested:
            found = difference(results, name, against[name], metric) if name in against else None
            versus = "" if shared or found is None else f" vs {against[name]}"
            gains.append("" if found is None else f"{found}{versus}")
        missing = f" ({len(by_seed)} of {len(seeds)} seeds)" if len(by_seed) < len(seeds) else ""
        rows.append([f"{name}{missing}", *(cell[s] for s in scores)])
        rows[-1] += [*gains, *(cell[m] for m in measures)]
    heads = [f"{metric} - {shared}" if shared else f"{metric} difference" for metric in tested]
    rows = [[c.replace("|", "\\|") for c in r] for r in (["", *scores, *heads, *measures], *rows)]
    text = tabulate(rows, headers="firstrow", tablefmt="github", disable_numparse=True)
    return "\n\n".join(filter(None, [text, _legend(results, against, seeds, titles)]))


def _titles(results: Results) -> list[str]:
    """The table's columns: those that some run has a value for; of memory the GPU's first."""
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    known = {k for run in runs for k, v in run.items() if not math.isnan(v)}
    if runs and all("GPU MiB" in run for run in runs):
        known.discard("RSS MiB")
    return [title for title in (*SCORES, *MEASURES) if title in known]


def _cell(title: str, values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None and not math.isnan(v)]
    if not known or len(known) < len(values):
        return ""  # a mean over other seeds than the row's would mislead
    if title.endswith("MiB"):
        return f"{max(known):,.0f}"
    return f"{statistics.mean(known):.3g}" if title in ("s/iter", "data s") else spread(known)


def _legend(
    results: Results, against: Mapping[str, str], seeds: Sequence[int], titles: Sequence[str]
) -> str:
    words = []
    if len(seeds) > 1:
        words.append(
            f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}, COCO metrics in "
            f"percent."
        )
    found = [difference(results, name, base, "AP") for name, base in against.items()]
    if any(d is not None and d.half is not None for d in found):
        words.append(
            "Differences are paired by seed: ± is half of the 95 % confidence interval, p that of "
            "the two-sided paired t test, not corrected for the number of rows."
        )
    elif any(found):
        words.append("Differences are paired by seed; fewer than three seeds allow no test.")
    if "s/iter" in titles:
        runs = [run for by_seed in results.values() for run in by_seed.values()]
        most = max(int(run.get("at a time", 1)) for run in runs)
        shared = (
            f" Up to {most} runs at a time shared the machine: this is no measurement of speed."
            if most > 1
            else ""
        )
        words.append(f"s/iter: median seconds of an iteration, data s waiting for data.{shared}")
    if "GPU MiB" in titles:
        words.append("GPU MiB: most that PyTorch had allocated.")
    if "RSS MiB" in titles:
        words.append("RSS MiB: peak of the largest process, evaluation included.")
    return textwrap.fill(" ".join(words), 100)


def as_csv(runs: Sequence[Run], results: Results) -> str:
    """A line for each run, with empty cells where it has not finished."""
    fields = ["name", "seed", "config", "overrides", *SCORES, *MEASURES, "at a time"]
    text = io.StringIO()
    lines = csv.DictWriter(text, fields, lineterminator="\n")
    lines.writeheader()
    for run in runs:
        settings = dict(name=run.name, seed=run.seed, config=run.config)
        settings["overrides"] = shlex.join(run.overrides)
        lines.writerow({**settings, **results[run.name].get(run.seed, {})})
    return text.getvalue()


def picture(results: Results, against: Mapping[str, str]) -> bytes:
    """A PNG of AP: mean, standard deviation and single seeds of each row."""
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
        if rows[base]:
            ax.axvline(statistics.mean(rows[base]), color="#b0b4b8", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("AP: mean ± standard deviation; grey dots: single seeds")
    ax.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
