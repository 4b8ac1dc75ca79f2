"""The teachers of a comparison: which row is whose teacher, and how the others are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .describe import Description
from .entries import Entry
from .results import Line
from .run import EntryRun, make_runs

__all__ = ["teacher_runs"]


def teacher_runs(
    entries: Sequence[Entry],
    described: dict[str, Description],
    previous: Sequence[Line],
    output: Path,
    evaluate: bool,
) -> tuple[list[EntryRun], dict[str, str]]:
    """Find the teacher of each row.

    Args:
        described: name of the entry -> its description; empty if results.csv has all.
        evaluate: whether teachers that no entry gives are evaluated.

    Returns:
        the evaluations that are to be done, and row -> row of its teacher ("" for none).
    """
    before = {line.entry.name: line.teacher or "" for line in previous}
    if not described:
        names = {before[entry.name] for entry in entries} - {""}
        lines = {line.entry.name: line.entry for line in previous if line.entry.name in names}
        return [], {e.name: before[e.name] for e in entries if before[e.name] in {"", *lines}}
    marked = next((entry.name for entry in entries if entry.is_teacher), None)
    taken = {entry.folder for entry in entries}
    runs: dict[str, EntryRun] = {}
    teachers = {}
    for entry in entries:
        identity = described[entry.name].teacher
        teachers[entry.name] = (marked or "") if identity and not entry.is_teacher else ""
        if not identity or marked or not evaluate:
            continue
        if identity not in runs:
            runs[identity] = _evaluation(entry, identity, output, taken)
            taken.add(runs[identity].entry.folder)
        teachers[entry.name] = runs[identity].name
    return list(runs.values()), teachers


def _evaluation(entry: Entry, identity: str, output: Path, taken: set[str]) -> EntryRun:
    """The evaluation of the teacher of an entry, with a name that no other row has."""
    overrides = tuple(o for o in entry.overrides if "{seed}" not in o)
    config = make_runs(entry, [0], output)[0].config
    names = ["teacher", f"teacher of {entry.name}"]
    for name in names:
        row = Entry(name, entry.config, overrides, is_teacher=True)
        run = EntryRun(
            title=name,
            folder=output / row.folder,
            config=config,
            overrides=overrides,
            mode="--eval-teacher",
            entry=row,
            identity=identity,
        )
        try:
            run.check()
        except ValueError:  # of another teacher, from an earlier call
            if name == names[-1]:
                raise
            continue
        if row.folder not in taken:
            break
    return run
