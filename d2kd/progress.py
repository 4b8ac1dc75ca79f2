"""Progress of long work: a rate and an ETA from the last minute, and one line that shows them.

An average over the whole run, or its median, hides that a machine has become busy: it promises one
minute where twenty are left. The classes here look at the last minute only. They import no PyTorch.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

__all__ = ["ProgressLine", "RecentRate", "format_time", "track"]

WINDOW = 60.0  # seconds that a rate looks back
T = TypeVar("T")


def format_time(seconds: float) -> str:
    """Minutes and seconds, with hours in front where there are any: "2:10", "1:02:10"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class RecentRate:
    """Measures how long a step takes, over the last minute.

    Reports may be rare: a training writes its metrics every 20 steps. The rate is therefore taken
    between the newest report and the newest one that is at least `window` seconds older.

    Args:
        window: seconds to look back.
        clock: gives the time in seconds; tests replace it.
    """

    def __init__(self, window: float = WINDOW, clock: Callable[[], float] = time.monotonic):
        self.window, self.clock = window, clock
        self.started = clock()
        self._reports: deque[tuple[float, int]] = deque()  # (time, finished steps), oldest first

    def update(self, done: int) -> None:
        """Report how many steps are finished. A number that has not grown changes nothing."""
        now = self.clock()
        if self._reports and done <= self._reports[-1][1]:
            return
        self._reports.append((now, done))
        while len(self._reports) > 2 and self._reports[1][0] <= now - self.window:
            self._reports.popleft()

    @property
    def idle(self) -> float:
        """Seconds since the last report of a finished step, or since the start if there is none."""
        return self.clock() - (self._reports[-1][0] if self._reports else self.started)

    @property
    def stalled(self) -> bool:
        """Whether the next report is overdue: by a minute, or by a usual pause between reports."""
        return self.idle > max(self.window, 2 * self._pause()[0])

    def _pause(self) -> tuple[float, int]:
        """Seconds and steps between the last two reports; zeros if there are fewer."""
        if len(self._reports) < 2:
            return 0.0, 0
        (before, fewer), (last, done) = self._reports[-2], self._reports[-1]
        return last - before, done - fewer

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds of a step, or None before the second report.

        If the next report is late, the value grows as if that report came right now.
        """
        if len(self._reports) < 2:
            return None
        (first, at_first), (last, done) = self._reports[0], self._reports[-1]
        seconds = (last - first) / (done - at_first)
        steps = self._pause()[1]
        return max(seconds, (self.clock() - first) / (done + steps - at_first))

    def eta(self, total: int) -> float | None:
        """Seconds until `total` steps are finished, or None before the second report."""
        seconds = self.seconds_per_step
        if seconds is None:
            return None
        return max(0.0, seconds * (total - self._reports[-1][1]) - self.idle)

    def words(self, total: int) -> str:
        """The ETA in words: "ETA 2:10"; "no step for 2:10" if the work has stalled."""
        if not self._reports:
            return "starting" if self.idle < self.window else f"starting, {format_time(self.idle)}"
        if self._reports[-1][1] >= total:
            return ""
        if self.stalled:
            return f"no step for {format_time(self.idle)}"
        seconds = self.eta(total)
        return "" if seconds is None else f"ETA {format_time(seconds)}"


class ProgressLine:
    """One line of progress.

    A terminal shows one line that is rewritten in place when it changes. A file, a pipe or a
    terminal that cannot go back (TERM=dumb, as our notebooks set it) gets a new line for each tenth
    of the way and after each minute without one, and no control characters.

    Args:
        stream: default: standard output.
        clock: gives the time in seconds; tests replace it.
        pause: seconds without a line in a file, before the first one and between two of them.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: float = 0.0,
    ):
        self.stream = sys.stdout if stream is None else stream
        self.clock, self.pause = clock, pause
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._shown: str | None = None  # what a terminal shows
        self._tenth, self._printed = -1, clock()

    def show(self, text: str, share: float) -> None:
        """Show the present state.

        Args:
            share: finished part of the work in [0, 1].
        """
        if self.live:
            # A line that is as wide as the terminal would wrap, and "\r" would not reach its start.
            text = text[: shutil.get_terminal_size().columns - 1]
            if text != self._shown:
                self._shown = text
                print(f"\r\x1b[K{text}", end="", file=self.stream, flush=True)
            return
        tenth, now = int(10 * share), self.clock()
        quiet = now - self._printed
        if quiet >= self.pause and (tenth > self._tenth or quiet >= 60):
            self._tenth, self._printed = max(tenth, self._tenth), now
            print(text, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print something else. On a terminal it goes above the line."""
        self._shown = None
        print(f"\r\x1b[K{text}" if self.live else text, file=self.stream, flush=True)

    def close(self, text: str = "") -> None:
        """End the line with a last text, or remove it from the terminal if there is none."""
        if text:
            self.note(text)
        elif self.live:
            print("\r\x1b[K", end="", file=self.stream, flush=True)


def bar(title: str, done: int, total: int, words: str) -> str:
    """A title, a bar of 24 characters, the numbers and some words."""
    filled = 24 * min(done, total) // max(total, 1)
    return f"{title:<18} {'#' * filled:.<24} {done:>5}/{total}  {words}".rstrip()


def track(
    items: Iterable[T],
    total: int,
    title: str,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """Yield the items and show how many of them have been worked on.

    A file gets a line at most every 5 seconds, and one at the end.

    Args:
        items: anything to loop over.
        total: their number.
        title: names the work in the line.
        stream: default: standard error, so that a pipe from standard output stays clean.
        clock: gives the time in seconds; tests replace it.
    """
    line = ProgressLine(sys.stderr if stream is None else stream, clock, pause=5.0)
    rate, shown, done = RecentRate(clock=clock), -1.0, 0
    try:
        for done, item in enumerate(items):
            rate.update(done)
            # A terminal need not be written to for each of thousands of quick items.
            if not line.live or clock() - shown >= 0.1:
                shown = clock()
                line.show(bar(title, done, total, rate.words(total)), done / max(total, 1))
            yield item
        else:
            done = total
    finally:
        took = f"took {format_time(clock() - rate.started)}"
        line.close("" if line.live else bar(title, done, total, took))
