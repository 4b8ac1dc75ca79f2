"""Progress of a comparison: of each run that trains now, and of the whole table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from d2kd.progress import ProgressLine, format_time
from d2kd.tools.runs import Run
from d2kd.tools.watch import Watch

__all__ = ["Report"]


class Report:
    """Shows how the runs get on, in one line; see `ProgressLine`.

    Args:
        runs: all that are to be done.
        at_a_time: number of runs that share the machine.
        stream: default: standard output.
    """

    def __init__(self, runs: Sequence[Run], at_a_time: int, stream: TextIO | None = None):
        self.waiting = list(runs)  # and those that work now
        self.count, self.at_a_time = len(runs), at_a_time
        self.total = sum(self._steps(run) for run in runs)
        self.line = ProgressLine(stream)
        self._seconds: float | None = None  # of one step of the whole table

    @staticmethod
    def _steps(run: Run) -> int:
        return run.max_iter or 0

    def watch(self, watches: Mapping[Run, Watch]) -> None:
        """Show the present state; for `run_all`."""
        parts = [f"{self.count - len(self.waiting)}/{self.count} runs"]
        for run, watch in watches.items():
            steps = f" {watch.done}/{run.max_iter}" if run.max_iter else f" {watch.done or ''}"
            parts.append(f"{run.title}{steps.rstrip()} {watch.words()}".rstrip())
        seconds = self.eta(watches)
        if seconds is not None and self.count > 1:
            parts.append(f"all: ETA {format_time(seconds)}")
        finished = self.total - self.remaining(watches)
        self.line.show(" | ".join(parts), finished / self.total if self.total else 0.0)

    def remaining(self, watches: Mapping[Run, Watch]) -> int:
        """Iterations that all runs still have to do."""
        return sum(
            max(self._steps(run) - (watches[run].done if run in watches else 0), 0)
            for run in self.waiting
        )

    def eta(self, watches: Mapping[Run, Watch]) -> float | None:
        """Seconds until all runs have trained, at the speed of the last minute.

        The speed is the mean speed of the runs that train now, times the number of runs at a time.
        Starts and evaluations are not included.

        Returns:
            None where the number of iterations of a run, or the speed, is unknown.
        """
        trained = [run for run in self.waiting if run.trains]
        if any(run.max_iter is None for run in trained):
            return None
        rates = [watch.rate.seconds_per_step for watch in watches.values()]
        speeds = [1 / seconds for seconds in rates if seconds]
        if speeds:
            places = min(self.at_a_time, max(len(trained), 1))
            self._seconds = len(speeds) / (sum(speeds) * places)
        return None if self._seconds is None else self._seconds * self.remaining(watches)

    def ended(self, run: Run, words: str) -> None:
        """Say how a run has ended."""
        if run in self.waiting:
            self.waiting.remove(run)
        self.line.note(f"{run.title}: {words}")

    def close(self) -> None:
        self.line.close()
