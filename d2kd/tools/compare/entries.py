"""The entries of a comparison: "NAME (vs OTHER): CONFIG OVERRIDES", each a row of the table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from d2kd.tools.paths import find_config

__all__ = ["RESULTS", "Entry", "choose_bases", "parse_entry", "read_entries"]

FORMAT = "'[NAME [(vs OTHER)|(teacher)]:] CONFIG [OVERRIDES]'"
RESULTS = ("results.md", "results.csv", "results.png", "curves.png")


class Entry(NamedTuple):
    """One row of a comparison.

    Args:
        name: its name in the table.
        config: the config as the user named it.
        overrides: fields of the config; "{seed}" in them stands for the seed.
        against: name of the row that it is compared with, where the entry names one.
        is_teacher: whether the other rows' students learn from this detector.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    against: str | None = None
    is_teacher: bool = False

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return re.sub(r"[^\w.+-]+", "_", self.name)

    @property
    def has_weights(self) -> bool:
        """Whether it is a teacher that is evaluated with given weights, and not trained."""
        weights = any(text.startswith("train.init_checkpoint=") for text in self.overrides)
        return self.is_teacher and weights

    def __str__(self) -> str:
        """The entry as a user writes it."""
        mark = " (teacher)" if self.is_teacher else f" (vs {self.against})" if self.against else ""
        return f"{self.name}{mark}: {shlex.join([self.config, *self.overrides])}"


def parse_entry(text: str) -> Entry:
    """Read "[NAME [(vs OTHER)|(teacher)]:] CONFIG [OVERRIDES]".

    Raises:
        ValueError: there is no config of that path, the name cannot be the name of a folder, or a
            quotation mark is not closed.
    """
    name, _, rest = text.rpartition(": ")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ValueError(
            f"{text!r}: expected closed quotation marks, found: {error}. An entry is {FORMAT}"
        ) from None
    config, *overrides = words or [""]
    try:
        find_config(config)
    except FileNotFoundError as error:
        raise ValueError(f"{text!r}: {error}. An entry is {FORMAT}") from None
    parts = re.fullmatch(r"(.*?)(?: \((?:vs (.+)|(teacher))\))?", name or Path(config).stem)
    assert parts is not None  # the pattern matches any text
    name, against, teacher = parts.groups()
    entry = Entry(name, config, tuple(overrides), against, bool(teacher))
    if entry.folder in ("", ".", "..") or entry.folder in RESULTS:
        raise ValueError(f"{text!r}: expected a name for a folder of its own, found {name!r}")
    return entry


def read_entries(texts: Sequence[str], file: Path | None) -> list[Entry]:
    """Read the entries of the command line, then the entries of a file.

    Args:
        file: has an entry on each line; lines that begin with # are comments.

    Raises:
        ValueError: there are none, or two share a folder.
    """
    lines = [line.strip() for line in file.read_text().splitlines()] if file else []
    entries = [parse_entry(t) for t in [*texts, *(x for x in lines if x and x[0] != "#")]]
    if not entries:
        raise ValueError(f"expected entries {FORMAT} or a --file of them, found none")
    if len({entry.folder for entry in entries}) < len(entries):
        names = [entry.name for entry in entries]
        raise ValueError(f"expected a different name for each entry, found {names}")
    return entries


def choose_bases(
    entries: Sequence[Entry],
    against: str | None,
    known: Mapping[str, str] | None = None,
    before: Iterable[str] = (),
) -> dict[str, str]:
    """Choose the row that each entry is compared with.

    Args:
        entries: the entries of this call.
        against: name of the row for all entries that name none; default: what the table had, or
            else its first row that is no teacher.
        known: row -> row that it is compared with, of the table that is there.
        before: names of the rows of that table that are no teachers.

    Returns:
        row -> row that it is compared with. Teachers are compared with none.

    Raises:
        ValueError: no row has that name.
    """
    known = known or {}
    students = [*before, *(entry.name for entry in entries if not entry.is_teacher)]
    names = list(dict.fromkeys([*before, *(entry.name for entry in entries)]))
    first = students[0] if students else None
    bases = {}
    for entry in entries:
        default = None if entry.is_teacher else against or known.get(entry.name) or first
        base = entry.against or default
        if base is not None and base not in names:
            raise ValueError(f"a row to compare with: expected one of {names}, found {base!r}")
        if base is not None and base != entry.name:
            bases[entry.name] = base
    return bases
