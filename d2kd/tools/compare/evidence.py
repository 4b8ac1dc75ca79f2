"""Warnings where a comparison says little: no gap, an unfinished baseline, unequal lengths."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence

from .curves import in_order, mean_ap, steps_of
from .statistics import Gap, Results, reached, spread

__all__ = ["warnings"]

LITTLE = 5.0  # AP between student and teacher, below which there is little to distill
STILL = 1.0  # AP that twice the steps may add to a converged baseline

Curves = Mapping[str, Sequence[str]]


def warnings(
    results: Results,
    gaps: Mapping[str, Gap],
    against: Mapping[str, str],
    curves: Curves,
    alone: Collection[str] = (),
    teachers: Collection[str] = (),
) -> list[str]:
    """What a reader must know before he believes the table. Each warning is a sentence or two.

    Args:
        gaps: distilled row -> the rows that it lies between.
        against: row -> row that it is compared with.
        curves: name -> rows, see `group_rows`.
        alone: rows of students that are not distilled.
        teachers: rows of teachers.
    """
    if not gaps:  # nothing is distilled yet: each student alone is compared with each teacher
        gaps = _possible_gaps(results, curves, alone, teachers)
    return [
        *reached(results, gaps),
        *_little_gap(results, gaps, curves),
        *_baselines(results, gaps, curves, alone),
        *_other_steps(results, against, curves),
    ]


def _curve_of(row: str, curves: Curves) -> Sequence[str]:
    return next((rows for rows in curves.values() if row in rows), [row])


def _best(results: Results, rows: Sequence[str]) -> tuple[str, float] | None:
    """The row with the highest mean AP, and that AP."""
    known = [(ap, row) for row in rows if (ap := mean_ap(results, row)) is not None]
    return max(known)[::-1] if known else None


def _possible_gaps(
    results: Results, curves: Curves, alone: Collection[str], teachers: Collection[str]
) -> dict[str, Gap]:
    """Gaps between the best row of each student alone and each teacher."""
    bests = [_best(results, [row for row in rows if row in alone]) for rows in curves.values()]
    pairs = [Gap(best[0], teacher) for best in bests if best for teacher in teachers]
    return {f"{gap.alone} with {gap.teacher}": gap for gap in pairs}


def _little_gap(results: Results, gaps: Mapping[str, Gap], curves: Curves) -> list[str]:
    """Teachers that are not clearly better than the best student alone."""
    found = []
    for name in dict.fromkeys(gap.teacher for gap in gaps.values()):
        alone = {gap.alone: gap for gap in gaps.values() if gap.teacher == name}
        teacher = mean_ap(results, name)
        best = _best(results, [row for base in alone for row in _curve_of(base, curves)])
        if teacher is None or best is None or teacher - best[1] >= LITTLE:
            continue
        if best[0] in alone and reached(results, {"": alone[best[0]]}):
            continue  # that warning says it
        found.append(
            f"there is little to distill: teacher {name!r} {teacher:.1f} AP, student alone "
            f"{best[0]!r} {best[1]:.1f}."
        )
    return found


def _values(results: Results, row: str) -> list[float]:
    return [run["AP"] for run in results[row].values()]


def _noise(results: Results, rows: Sequence[str]) -> float:
    """The larger standard deviation over seeds of some rows, at least `STILL`."""
    values = [_values(results, row) for row in rows]
    return max([STILL, *(statistics.stdev(v) for v in values if len(v) > 1)])


def _baselines(
    results: Results, gaps: Mapping[str, Gap], curves: Curves, alone: Collection[str]
) -> list[str]:
    """Students alone that would become better with more steps, or might."""
    found = []
    bases = dict.fromkeys(gap.alone for gap in gaps.values())
    for name, rows in curves.items():
        compared = [row for row in rows if row in bases]
        order = in_order(results, rows)
        if not order or not (compared or any(row in alone for row in rows)):
            continue
        longest_steps, longest = order[-1]
        shorter = [item for item in order if item[0] * 2 <= longest_steps]
        if not shorter:
            if compared and len(order) == len(rows):  # else a longer one may be yet to come
                found.append(
                    f"whether {name!r} has converged was not checked: add an entry with "
                    f"train.max_iter={2 * longest_steps}."
                )
            continue
        half_steps, half = shorter[-1]
        gain = statistics.mean(_values(results, longest)) - statistics.mean(_values(results, half))
        if gain > _noise(results, [half, longest]):
            found.append(
                f"{name!r} has not converged: {spread(_values(results, half))} AP after "
                f"{half_steps:,} steps, {spread(_values(results, longest))} after "
                f"{longest_steps:,}."
            )
            continue
        best, used = _best(results, rows), _best(results, compared)
        if best and used and best[1] - used[1] > _noise(results, [best[0], used[0]]):
            found.append(
                f"no row is compared with the best student alone, {best[0]!r} ({best[1]:.1f} AP; "
                f"{used[0]!r} {used[1]:.1f})."
            )
    return found


def _other_steps(results: Results, against: Mapping[str, str], curves: Curves) -> list[str]:
    """Rows that train longer, or shorter, than the row that they are compared with.

    Within a curve this is what the curve shows.
    """
    found = []
    for row, base in against.items():
        steps, others = steps_of(results, row), steps_of(results, base)
        if None in (steps, others) or steps == others or base in _curve_of(row, curves):
            continue
        found.append(f"{row!r} ({steps:,} steps, {base!r} {others:,})")
    return [f"unequal lengths are compared: {', '.join(found)}."] if found else []
