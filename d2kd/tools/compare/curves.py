"""Curves of a comparison: rows that differ only in how long they train."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from .entries import Entry
from .statistics import Results

__all__ = ["group_rows", "in_order", "mean_ap", "steps_of"]

LENGTH = "train.max_iter="
# Fields that change with the length of a training.
PERIODS = ("train.eval_period=", "train.log_period=", "train.checkpointer.")
WITH_LENGTH = (LENGTH, *PERIODS, "lr_multiplier.")


def group_rows(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """Put rows with the same config and overrides, apart from the length, into one curve.

    Two rows of the same length are never in one curve.

    Returns:
        name of the curve -> its rows, in the order of the entries. The name is what the names of
        the rows begin with, in whole words: "alone" for "alone 2000" and "alone 4000".
    """
    groups: dict[tuple, dict[str, str]] = {}  # settings -> length -> row
    for entry in entries:
        length = next((o for o in reversed(entry.overrides) if o.startswith(LENGTH)), "")
        settings = tuple(o for o in entry.overrides if not o.startswith(WITH_LENGTH))
        number = 0
        while length in groups.setdefault((entry.config, settings, entry.is_teacher, number), {}):
            number += 1
        groups[entry.config, settings, entry.is_teacher, number][length] = entry.name
    curves: dict[str, list[str]] = {}
    for group in groups.values():
        rows = list(group.values())
        name = _shared_words(rows)
        curves[rows[0] if name in curves else name] = rows
    return curves


def _shared_words(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    shared = []
    for words in zip(*(re.split(r"[\s_]+", name) for name in names), strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return " ".join(shared).rstrip(" ,;:-(") or names[0]


def steps_of(results: Results, row: str) -> int | None:
    """Steps that a row trains; None for a row that is not trained here or has not finished."""
    steps = [run["steps"] for run in results.get(row, {}).values() if "steps" in run]
    return int(max(steps)) if steps else None


def mean_ap(results: Results, row: str) -> float | None:
    """Mean AP of a row over its seeds; None if it has not finished with any."""
    values = [run["AP"] for run in results.get(row, {}).values() if "AP" in run]
    return statistics.mean(values) if values else None


def in_order(results: Results, rows: Sequence[str]) -> list[tuple[int, str]]:
    """(steps, row) of the finished rows of a curve, the shortest training first."""
    known: Mapping[str, int | None] = {row: steps_of(results, row) for row in rows}
    return sorted((steps, row) for row, steps in known.items() if steps is not None)
