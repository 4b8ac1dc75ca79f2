"""The table of a comparison as Markdown, and its legend. See `statistics` for the types."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from .run import METRICS, TASKS
from .statistics import Figures, Gap, Results, difference, gap_shares, spread

__all__ = ["MEASURES", "SCORES", "table"]

SCORES = [f"{prefix}{metric}" for prefix in TASKS.values() for metric in METRICS]
MEASURES = ["steps", "train min", "s/iter", "data s", "GPU MiB", "RSS MiB"]
CLOSED = "gap closed, %"
NO_GAP = "no gap"


def table(
    results: Results,
    against: Mapping[str, str],
    seeds: Sequence[int],
    columns: Sequence[str] | None = None,
    gaps: Mapping[str, Gap] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """Markdown: a row for each entry, and below it how to read it.

    Args:
        against: row -> row that it is compared with.
        seeds: all seeds that the entries are to be trained with.
        columns: some of `SCORES` and `MEASURES`; default: all that there are values for.
        gaps: distilled row -> the rows between which it lies.
        warnings: sentences to put below, each in a paragraph of its own.
    """
    gaps = gaps or {}
    titles = [title for title in _titles(results) if title in (columns or (*SCORES, *MEASURES))]
    scores = [title for title in titles if title in SCORES]
    measures = [title for title in titles if title not in SCORES]
    bases = set(against.values())
    tested = [metric for metric in scores if metric.endswith("AP") and bases]
    shared = next(iter(bases)) if len(bases) == 1 else None
    closed = [CLOSED] if any(gap_shares(results, name, gap) for name, gap in gaps.items()) else []
    rows = []
    for name, by_seed in results.items():
        cell = {title: _cell(title, [r.get(title) for r in by_seed.values()]) for title in titles}
        gains = []
        for metric in tested:
            gain = difference(results, name, against[name], metric) if name in against else None
            versus = "" if shared or gain is None else f" vs {against[name]}"
            gains.append("" if gain is None else f"{gain}{versus}")
        gains += [_closed(results, name, gaps) for _ in closed]
        once = None in by_seed
        missing = not once and len(by_seed) < len(seeds)
        count = f" ({len(by_seed)} of {len(seeds)} seeds)" if missing else ""
        rows.append([f"{name}{count}", *(cell[s] for s in scores)])
        rows[-1] += [*gains, *(cell[m] for m in measures)]
    heads = [f"{metric} - {shared}" if shared else f"{metric} difference" for metric in tested]
    rows.insert(0, ["", *scores, *heads, *closed, *measures])
    rows = [[c.replace("|", "\\|") for c in r] for r in rows]
    text = tabulate(rows, headers="firstrow", tablefmt="github", disable_numparse=True)
    legend = _legend(results, against, seeds, titles, gaps)
    below = [" ".join(legend), *(f"Warning: {warning}" for warning in warnings)]
    return "\n\n".join([text, *(textwrap.fill(words, 100) for words in below if words)])


def _titles(results: Results) -> list[str]:
    """The table's columns: those that some run has a value for. The GPU's memory, where known, is
    shown instead of the process's."""
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    known = {k for run in runs for k, v in run.items() if not math.isnan(v)}
    trained = [run for run in runs if any(title in run for title in MEASURES)]
    if trained and all("GPU MiB" in run for run in trained):
        known.discard("RSS MiB")
    return [title for title in (*SCORES, *MEASURES) if title in known]


def _cell(title: str, values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None and not math.isnan(v)]
    if not known or len(known) < len(values):
        return ""  # a mean over other seeds than the row's would mislead
    if title.endswith("MiB"):
        return f"{max(known):,.0f}"
    if title not in MEASURES:
        return spread(known)
    mean = statistics.mean(known)
    return f"{mean:,.0f}" if title == "steps" or mean >= 1000 else f"{mean:.3g}"


def _closed(results: Results, name: str, gaps: Mapping[str, Gap]) -> str:
    if name not in gaps:
        return ""
    shares = gap_shares(results, name, gaps[name])
    known = [100 * share for share in shares if share is not None]
    if len(known) < len(shares):
        return NO_GAP
    teacher = gaps[name].teacher
    several = len({gap.teacher for gap in gaps.values()}) > 1
    return f"{spread(known)}{f' to {teacher}' if several else ''}" if known else ""


def _legend(
    results: Results,
    against: Mapping[str, str],
    seeds: Sequence[int],
    titles: Sequence[str],
    gaps: Mapping[str, Gap],
) -> list[str]:
    """The sentences below the table."""
    sentences = []
    if len(seeds) > 1:
        sentences.append(
            f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}, COCO metrics in "
            f"percent."
        )
    once = [name for name, by_seed in results.items() if None in by_seed]
    if once:
        sentences.append(f"Evaluated once, not trained here: {', '.join(once)}.")
    differences = [difference(results, name, base, "AP") for name, base in against.items()]
    if any(d is not None and d.half is not None for d in differences):
        sentences.append(
            "Differences are paired by seed: ± is half of the 95 % confidence interval, p is from "
            "the two-sided paired t test, not corrected for the number of rows."
        )
    elif any(differences):
        sentences.append("Differences are paired by seed; fewer than three seeds allow no test.")
    shares = [share for name, gap in gaps.items() for share in gap_shares(results, name, gap)]
    if shares:
        alone = ", ".join(dict.fromkeys(gap.alone for gap in gaps.values()))
        sentences.append(
            f"Gap closed: (AP - AP of the student alone) / (AP of the teacher - AP of the student "
            f"alone), for each seed; the student alone is {alone}."
        )
    if None in shares:
        sentences.append(
            f"'{NO_GAP}': with at least one seed the student alone is as good as its teacher."
        )
    runs: list[Figures] = [run for by_seed in results.values() for run in by_seed.values()]
    if "train min" in titles:
        sentences.append(
            "train min: minutes of training, the mean time of a step times the steps; evaluations "
            "and checkpoints are not in it."
        )
    if "s/iter" in titles:
        sentences.append(
            "s/iter: median seconds of an iteration; data s: its part that waits for data."
        )
    if {"s/iter", "train min"} & set(titles):
        most = max(int(run.get("at a time", 1)) for run in runs)
        if most > 1:
            sentences.append(
                f"Up to {most} runs at a time shared the machine: do not read this as a "
                f"measurement of speed."
            )
    if "GPU MiB" in titles:
        sentences.append("GPU MiB: the most that PyTorch had allocated.")
    if "RSS MiB" in titles:
        sentences.append("RSS MiB: peak of the largest process, evaluation included.")
    return sentences
