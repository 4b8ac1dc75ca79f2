"""The lines that `d2kd doctor` prints."""

from __future__ import annotations

import contextlib
import shutil
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["OK", "PROBLEM", "WARNING", "Line", "Report", "show_duration"]

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Line(NamedTuple):
    """What one check found.

    Attributes:
        level: OK; WARNING, if it will work but perhaps not as expected; or PROBLEM, if a training
            would stop or be wrong.
        subject: what was checked, in a word or two.
        text: what was found, and what to do about it.
    """

    level: str
    subject: str
    text: str

    def show(self, width: int = 100) -> str:
        """The line for the terminal; further lines of a long text are indented."""
        start = f"{self.level:<8} {self.subject:<12} "
        return textwrap.fill(
            start + self.text,
            width,
            subsequent_indent=" " * 22,
            break_long_words=False,
            break_on_hyphens=False,
        )


class Report:
    """Prints and keeps lines, and turns an error inside a check into a line."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.width = max(min(shutil.get_terminal_size((100, 40)).columns, 100), 60)

    def add(self, level: str, subject: str, text: str) -> None:
        line = Line(level, subject, " ".join(text.split()))
        self.lines.append(line)
        print(line.show(self.width), flush=True)

    def ok(self, subject: str, text: str) -> None:
        self.add(OK, subject, text)

    def warning(self, subject: str, text: str) -> None:
        self.add(WARNING, subject, text)

    def problem(self, subject: str, text: str) -> None:
        self.add(PROBLEM, subject, text)

    @contextlib.contextmanager
    def check(self, subject: str) -> Iterator[None]:
        """Report an error that is raised inside the block as a problem, and go on after it."""
        try:
            yield
        except Exception as error:  # whatever user code raises; the other checks must still run
            message = str(error) or repr(error)
            # Detectron2 appends the whole config; the first paragraph says what is wrong.
            message = message.split("\n\n")[0][:700]
            named = isinstance(error, (ValueError, TypeError, OSError)) and "expected" in message
            self.problem(subject, message if named else f"{type(error).__name__}: {message}")

    def count(self, level: str) -> int:
        return sum(line.level == level for line in self.lines)

    def conclude(self) -> int:
        """Print the result.

        Returns:
            the exit status: 1 with problems, else 0.
        """
        problems, warnings = self.count(PROBLEM), self.count(WARNING)
        level = PROBLEM if problems else WARNING if warnings else OK
        words = [
            f"{count or 'no'} {name}{'' if count == 1 else 's'}"
            for count, name in ((problems, "problem"), (warnings, "warning"))
        ]
        print(Line(level, "result", ", ".join(words)).show(self.width))
        return int(bool(problems))


def show_duration(seconds: float) -> str:
    """A duration in the unit that suits it: "40 s", "12 min", "5.2 h", "3.1 days"."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
