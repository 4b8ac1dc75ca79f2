"""The files of a comparison: results.csv, results.md, pictures, and tables in documents.

results.csv is the memory of a comparison. It has the runs of all calls into the same folder, so
that a call with fewer entries or seeds adds to the table instead of replacing it.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from d2kd.files import write_file
from d2kd.metrics import read_metrics

from .curves import group_rows
from .entries import RESULTS, Entry
from .evidence import warnings
from .history import History, history_of
from .picture import picture
from .picture_of_curves import picture_of_curves
from .run import EntryRun
from .statistics import Gap, Results
from .table import MEASURES, SCORES, table

__all__ = ["Comparison", "Line", "read_lines", "split_markers", "table_size"]

FIGURES = (*SCORES, *MEASURES, "at a time")


class Line(NamedTuple):
    """A line of results.csv: one run.

    Args:
        entry: the row of the table. `entry.against` is the row that it is compared with.
        teacher: name of the row of its teacher; empty for a row that is not distilled; None where
            the file does not say so, because an early version wrote it.
        seed: None for an evaluation without training.
        figures: title -> value; empty where the run has not finished.
    """

    entry: Entry
    teacher: str | None
    seed: int | None
    figures: dict[str, float]


def read_lines(path: Path) -> list[Line]:
    """The lines of a results.csv, or none if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    lines = []
    for row in rows:
        figures = {k: float(row[k]) for k in FIGURES if row.get(k)}
        figures |= {k: int(figures[k]) for k in ("steps", "at a time") if k in figures}
        overrides = tuple(shlex.split(row["overrides"]))
        is_teacher = row.get("role") == "teacher"
        entry = Entry(row["name"], row["config"], overrides, row.get("against") or None, is_teacher)
        seed = int(row["seed"]) if row["seed"] else None
        lines.append(Line(entry, row.get("teacher"), seed, figures))
    return lines


class Comparison:
    """The runs of this call together with the lines that results.csv already has.

    Args:
        output: folder of the comparison.
        runs: of this call.
        against: row -> row that it is compared with, of this call.
        teachers: row -> row of its teacher, of this call; "" for a row that is not distilled.
        columns: see `table`.
        replace: forget the lines that results.csv has now.

    Raises:
        ValueError: results.csv has a row of this call with other settings.
    """

    def __init__(
        self,
        output: Path,
        runs: Sequence[EntryRun],
        against: Mapping[str, str],
        teachers: Mapping[str, str],
        columns: Sequence[str] | None = None,
        replace: bool = False,
    ):
        self.output, self.runs, self.columns = output, runs, columns
        self.against, self.teachers = against, teachers
        self._forgotten = replace
        # Evaluations of teachers are told apart by their identity, in `EntryRun.check`.
        entries = {run.name: run.entry for run in runs if not run.identity}
        for line in self._previous():
            entry = entries.get(line.entry.name)
            if entry is None or _settings(entry) == _settings(line.entry) or not line.figures:
                continue  # a run that never finished is checked by its folder
            raise ValueError(
                f"{output / RESULTS[1]}: expected row {entry.name!r} to be "
                f"{shlex.join(_settings(entry))}, found {shlex.join(_settings(line.entry))}. "
                f"Choose another --output or name, or add --replace: the table then has the rows "
                f"of this call only."
            )

    def _previous(self) -> list[Line]:
        return [] if self._forgotten else read_lines(self.output / RESULTS[1])

    def lines(self) -> list[Line]:
        """All runs, in the order of the table: what was there first, then what this call adds."""
        now = {(run.name, run.seed): run for run in self.runs}
        known = {run.name: run.entry for run in self.runs}
        previous = {(line.entry.name, line.seed): line for line in self._previous()}
        names = list(dict.fromkeys(name for name, _ in [*previous, *now]))
        lines = []
        for name in names:
            keys = [key for key in dict.fromkeys([*previous, *now]) if key[0] == name]
            for key in sorted(keys, key=lambda key: (key[1] is not None, key[1] or 0)):
                if name in known:
                    entry = known[name]._replace(against=self.against.get(name))
                    teacher: str | None = self.teachers.get(name, "")
                    # A run of another seed, whose folder may be gone.
                    figures = now[key].result() if key in now else previous[key].figures
                else:
                    entry, teacher, _, figures = (
                        previous[key].entry, previous[key].teacher, None, previous[key].figures
                    )  # fmt: skip
                # An evaluation that is not there yet is no row: it would look like missing seeds.
                if figures or key[1] is not None:
                    lines.append(Line(entry, teacher, key[1], figures or {}))
        return lines

    def planned(self) -> int:
        """Size of the table when all runs are finished, in the unit of `table_size`."""
        lines = self.lines()
        seeds = len({line.seed for line in lines if line.seed is not None}) or 1
        once = {line.entry.name for line in lines if line.seed is None}
        once |= {run.name for run in self.runs if run.seed is None}
        return sum(line.seed is not None for line in lines) + seeds * len(once)

    def publish(self) -> str:
        """Write results.md, results.csv and the pictures of what has finished.

        Returns:
            the content of results.md.
        """
        lines = self.lines()
        results, bases = results_of(lines), bases_of(lines)
        seeds = sorted({line.seed for line in lines if line.seed is not None})
        gaps, rows = gaps_of(lines), {line.entry.name: line for line in lines}
        teachers = [name for name, line in rows.items() if line.entry.is_teacher]
        alone = [name for name in rows if name not in teachers and rows[name].teacher == ""]
        words = warnings(results, gaps, bases, curves_of(lines), alone, teachers)
        text = table(results, bases, seeds, self.columns, gaps, words) + "\n"
        self.output.mkdir(parents=True, exist_ok=True)
        self._forgotten = False  # from now on the file is this call's
        markdown, values, image, curves = (self.output / name for name in RESULTS)
        write_file(markdown, text)
        write_file(values, as_csv(lines))
        write_file(image, picture(results, bases))
        drawn = picture_of_curves(results, curves_of(lines), self._histories(lines), gaps)
        if drawn is not None:
            write_file(curves, drawn)
        return text

    def _histories(self, lines: Iterable[Line]) -> dict[str, list[History]]:
        """Row -> the histories of its finished runs, as far as their folders are still there."""
        histories: dict[str, list[History]] = {}
        for line in lines:
            if line.figures and line.seed is not None:
                folder = self.output / line.entry.folder / f"seed{line.seed}"
                histories.setdefault(line.entry.name, []).append(history_of(read_metrics(folder)))
        return histories


def _settings(entry: Entry) -> list[str]:
    return [entry.config, *entry.overrides]


def results_of(lines: Iterable[Line]) -> Results:
    """Row -> seed -> figures, of finished runs. Rows without one are there too."""
    results: dict[str, dict[int | None, dict[str, float]]] = {}
    for line in lines:
        by_seed = results.setdefault(line.entry.name, {})
        if line.figures:
            by_seed[line.seed] = line.figures
    return results


def bases_of(lines: Sequence[Line]) -> dict[str, str]:
    """Row -> row that it is compared with."""
    names = {line.entry.name for line in lines}
    entries = [line.entry for line in lines if line.entry.against in names]
    return {entry.name: entry.against for entry in entries if entry.against is not None}


def curves_of(lines: Iterable[Line]) -> dict[str, list[str]]:
    """See `group_rows`."""
    return group_rows({line.entry.name: line.entry for line in lines}.values())


def gaps_of(lines: Sequence[Line]) -> dict[str, Gap]:
    """The gap of each distilled row.

    The student alone is the row that a distilled row is compared with. Where that one is distilled
    too, it is the row that this one is compared with, and so on.
    """
    teachers = {line.entry.name: line.teacher for line in lines if line.teacher}
    marked = {line.entry.name for line in lines if line.entry.is_teacher}
    against = {line.entry.name: line.entry.against for line in lines}
    gaps = {}
    for name, teacher in teachers.items():
        alone, passed = against.get(name), {name}
        while alone in teachers and alone not in passed:
            passed.add(alone)
            alone = against.get(alone)
        if alone in against and alone not in passed | marked and teacher in against:
            gaps[name] = Gap(str(alone), teacher)
    return gaps


def as_csv(lines: Sequence[Line]) -> str:
    """A line for each run, with empty cells where it has not finished."""
    fields = ["name", "seed", "config", "overrides", *FIGURES, "against", "teacher", "role"]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        entry = line.entry
        settings = dict(name=entry.name, seed=line.seed, config=entry.config)
        settings |= dict(overrides=shlex.join(entry.overrides), against=entry.against)
        settings |= dict(teacher=line.teacher, role="teacher" if entry.is_teacher else "")
        writer.writerow({**settings, **{k: v for k, v in line.figures.items() if k in fields}})
    return text.getvalue()


def split_markers(place: str) -> tuple[Path, str, str, str]:
    """Find "FILE#NAME": the text between <!-- compare: NAME --> and <!-- /compare -->.

    Returns:
        the file, its text up to the first marker, between them, and from the second on.

    Raises:
        ValueError: there are no such markers.
    """
    file, _, name = place.rpartition("#")
    first, last = f"<!-- compare: {name} -->", "<!-- /compare -->"
    text = Path(file).read_text() if Path(file).is_file() else ""
    before, found, rest = text.partition(first)
    between, end, after = rest.partition(last)
    if not found or not end or "<!-- compare: " in between or first in after:
        raise ValueError(
            f"--into {place}: expected one {first} and then {last}, found others in {file!r}"
        )
    return Path(file), before + found, between, end + after


def table_size(text: str) -> int:
    """Number of runs in a table with its command below it, as --into writes them.

    A row stands for all seeds of the command, unless it says "(2 of 3 seeds)".
    """
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    given = re.search(r"--seeds((?: \d+)+)", text)
    seeds = len(given[1].split()) if given else 1
    counts = [re.search(r"\((\d+) of \d+ seeds\)", row) for row in rows]
    return sum(int(count[1]) if count else seeds for count in counts)
