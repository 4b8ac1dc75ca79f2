"""Read text files, and collect their errors, so that a user sees several at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["Problems", "read_lines_of", "read_number", "read_numbered_lines", "read_text"]

T = TypeVar("T")


class Problems:
    """Errors in files, each with its place.

    Args:
        shown: how many of them the message has.
    """

    def __init__(self, shown: int = 5):
        self.shown = shown
        self._lines: list[str] = []

    def add(self, file: str | Path, line: int | None, text: str) -> None:
        """Note an error.

        Args:
            line: number of the line, from 1; None for the whole file.
            text: what was expected and what was found.
        """
        place = f"{file}, line {line}" if line else f"{file}"
        self._lines.append(f"{place}: {text}")

    def __len__(self) -> int:
        return len(self._lines)

    def check(self) -> None:
        """Raise a ValueError with the first errors, if there are any."""
        if not self._lines:
            return
        shown = self._lines[: self.shown]
        more = len(self._lines) - len(shown)
        if more:
            shown.append(f"... and {more} more. Nothing was written.")
        elif len(shown) > 1:
            shown.append("Nothing was written.")
        raise ValueError("\n".join(shown))


def read_text(file: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: it is not a text file, or cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8, found {error.reason}") from error
    except OSError as error:
        raise ValueError(f"expected a file to read, found: {error.strerror}") from error


def read_numbered_lines(file: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of the lines of a file that are not blank.

    Raises:
        ValueError: see `read_text`.
    """
    lines = enumerate(read_text(file).split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_number(text: str | None) -> float:
    """Read a number; it stays an int if it is written as one.

    Raises:
        ValueError: it is not a finite number.
    """
    text = (text or "").strip()
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a number, found {text!r}")
    return value


def read_lines_of(
    fields: str, file: Path, problems: Problems, parse: Callable[[list[str], int], T]
) -> list[T]:
    """Read a file in which each line has the same fields.

    Args:
        fields: their names, for example "x1 y1 x2 y2 type".
        file: blank lines in it are left out.
        problems: what is wrong is added here.
        parse: makes something of the fields of a line and its number; it may raise a ValueError.

    Returns:
        what `parse` made of the lines without errors.
    """
    count = len(fields.split())
    parsed = []
    try:
        lines = read_numbered_lines(file)
    except ValueError as error:
        problems.add(file, None, str(error))
        return []
    for number, line in lines:
        found = line.split()
        try:
            if len(found) != count:
                raise ValueError(f"expected {count} fields, {fields}, found {len(found)}")
            parsed.append(parse(found, number))
        except ValueError as error:
            problems.add(file, number, str(error))
    return parsed
