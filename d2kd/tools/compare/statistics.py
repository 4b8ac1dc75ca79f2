"""What several seeds mean together: spread, paired tests, the share of a gap that is closed.

Results are {name of the row: {seed: {title: value}}} of finished runs, see `EntryRun.result`. An
evaluation without training, as of a teacher, has the seed None.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "Difference",
    "Gap",
    "Results",
    "difference",
    "gap_shares",
    "paired",
    "reached",
    "share_of_gap",
    "spread",
]

Figures = Mapping[str, float]
Results = Mapping[str, Mapping[int | None, Figures]]


class Difference(NamedTuple):
    """Mean of paired differences. From three pairs on also the half width of its 95 % confidence
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
    """Test whether values differ from the values of the same seeds in another row.

    Returns:
        None for no seeds.
    """
    differences = [v - b for v, b in zip(values, base, strict=True)]
    n = len(differences)
    if n < 3:
        return Difference(statistics.mean(differences)) if n else None
    from scipy.stats import t  # not at the top: it is slow to import

    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(n)
    ratio = abs(mean) / error if error else (math.inf if mean else 0.0)
    return Difference(mean, float(t.ppf(0.975, n - 1)) * error, 2 * float(t.sf(ratio, n - 1)))


def spread(values: Sequence[float]) -> str:
    """Mean, and sample standard deviation where there are two values or more."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def difference(results: Results, name: str, base: str, metric: str) -> Difference | None:
    """Difference of two rows, over the seeds that both have finished."""
    one, other = results[name], results[base]
    seeds = [s for s in one if s in other and metric in one[s] and metric in other[s]]
    return paired([one[s][metric] for s in seeds], [other[s][metric] for s in seeds])


class Gap(NamedTuple):
    """The rows between which a distilled student lies: the student alone, and its teacher."""

    alone: str
    teacher: str


def share_of_gap(teacher: float, alone: float, distilled: float) -> float | None:
    """Share of the gap between a student alone and its teacher that distillation closes.

    Args:
        teacher, alone, distilled: AP, in any unit.

    Returns:
        1 if the distilled student is as good as the teacher, 0 if it is as good as the student
        alone; None if there is no gap, because the student alone reaches its teacher.
    """
    return (distilled - alone) / (teacher - alone) if teacher > alone else None


def _at(results: Results, name: str, seed: int | None) -> float | None:
    """AP of a row for a seed; a row that was only evaluated has the same AP for all seeds."""
    by_seed = results.get(name, {})
    return by_seed.get(seed, by_seed.get(None, {})).get("AP")


def gap_shares(results: Results, name: str, gap: Gap) -> list[float | None]:
    """`share_of_gap` of a row, for each seed for which all three rows are finished."""
    shares = []
    for seed, figures in results[name].items():
        alone, teacher = _at(results, gap.alone, seed), _at(results, gap.teacher, seed)
        if alone is not None and teacher is not None and "AP" in figures:
            shares.append(share_of_gap(teacher, alone, figures["AP"]))
    return shares


def reached(results: Results, gaps: Mapping[str, Gap]) -> list[str]:
    """A warning for each student that reaches its teacher without distillation.

    Args:
        gaps: distilled row -> the rows that it lies between.
    """
    warnings = []
    for alone, teacher in dict.fromkeys(gaps.values()):
        pairs = [(_at(results, alone, s), _at(results, teacher, s)) for s in results.get(alone, {})]
        known = [(a, t) for a, t in pairs if a is not None and t is not None]
        without = sum(a >= t for a, t in known)
        if without:
            means = [statistics.mean(values) for values in zip(*known, strict=True)]
            seeds = f" with {without} of {len(known)} seeds" if len(known) > 1 else ""
            warnings.append(
                f"{alone!r} reaches its teacher {teacher!r} without distillation{seeds} "
                f"({means[0]:.1f} AP, teacher {means[1]:.1f}): there is no gap to close. Take a "
                f"better teacher, or compare with the teacher's own schedule."
            )
    return warnings
