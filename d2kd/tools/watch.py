"""Follow a training by the files that it writes. This module imports no PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from d2kd.metrics import parse_line
from d2kd.progress import RecentRate, format_time

__all__ = ["Watch"]


class Watch:
    """What is known about a run while it goes on, from its metrics.json and its output.

    Attributes:
        done: finished iterations.
        rate: time of an iteration over the last minute.
        loss, ap: the newest total loss and box AP (in percent); None if there is none yet.
        warnings: lines with warnings and errors that the run printed since the last `poll`.

    Args:
        folder: output folder of the run. Only what is added to its files from now on is read.
        output: name of the file in it with everything that the run prints.
        max_iter: number of iterations; None if that is unknown.
        trains: whether the run is a training, and not an evaluation.
        clock: gives the time in seconds; tests replace it.
    """

    def __init__(
        self,
        folder: Path,
        output: str,
        max_iter: int | None,
        trains: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_iter, self.trains = max_iter, trains
        self.rate = RecentRate(clock=clock)
        self.done = 0
        self.loss: float | None = None
        self.ap: float | None = None
        self.warnings: list[str] = []
        self._own_eta: float | None = None  # of the run itself, in its newest line
        self._metrics, self._output = _NewLines(folder / "metrics.json"), _NewLines(folder / output)

    def poll(self) -> None:
        """Read what the run has written since the last call."""
        marks = ("WARNING", "ERROR", "Warning: ")
        self.warnings = [x for x in self._output.read() if any(mark in x for mark in marks)]
        for line in self._metrics.read():
            values = parse_line(line)
            if not math.isnan(values.get("bbox/AP", math.nan)):
                self.ap = values["bbox/AP"]
            if "total_loss" in values and "iteration" in values:
                self.done, self.loss = values["iteration"] + 1, values["total_loss"]
                self.rate.update(self.done)
                self._own_eta = values.get("eta_seconds")

    def words(self) -> str:
        """Loss, AP and ETA in a few words; "evaluating" after the last iteration."""
        loss = "" if self.loss is None else f"loss {self.loss:.3f}"
        ap = "" if self.ap is None else f"AP {self.ap:.1f}"
        total = self.max_iter or 0
        if not self.trains or (total and self.done >= total):
            when = "evaluating"
        elif total or not self.done:
            when = self.rate.words(total)
            if not when and self._own_eta is not None:  # one report is no rate yet
                when = f"ETA {format_time(self._own_eta)}"
        else:
            seconds = self.rate.seconds_per_step
            when = "" if seconds is None else f"{seconds:.3g} s a step"
        return "  ".join(filter(None, [loss, ap, when]))


class _NewLines:
    """Gives the whole lines that were added to a file, from its present end on."""

    def __init__(self, path: Path):
        self.path = path
        self._place = path.stat().st_size if path.exists() else 0

    def read(self) -> list[str]:
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._place)
            text, newline, _ = file.read().rpartition(b"\n")
        self._place += len(text) + len(newline)
        return text.decode(errors="replace").splitlines()
