"""Functions that run in turns under a clock, and the statistics of their times.

Results have the format of results.json: `measurements`, a list of `Turn.record()`; `ratios`, a list
of the dicts of `Ratio.records()`; `notes`, lines to print below the tables; and the fields that the
command adds.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tabulate import tabulate


@dataclass
class Turn:
    """A piece of work to measure, and its samples.

    Attributes:
        scene: the images that it works on, such as "128 x 128 pixels, batch 2".
        boxes: number of boxes in each image.
        name: name of the work.
        phases: name of a phase -> function. It gets the result of the phase before; the first one
            gets None.
        tidy: called after the clock has stopped.
        seconds: name of a phase -> seconds in each round.
        peak: peak of the bytes that PyTorch allocated, minus the bytes before the turn. On a GPU
            there is one sample for each round; on a CPU there is one sample, from a round without
            a clock.
        kept: bytes at the end of the turn, while its result still exists, minus the bytes before
            the turn. On a CPU, memory from before the turn that the turn frees does not count.
    """

    scene: str
    boxes: int
    name: str
    phases: Mapping[str, Callable[[Any], Any]]
    tidy: Callable[[], None] = lambda: None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def take(self, device: torch.device, keep: bool) -> None:
        """Run once under the clock.

        Args:
            device: the device that the work runs on.
            keep: whether the sample counts.
        """
        cuda = device.type == "cuda"
        before = 0
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        marks, value = [_mark(cuda)], None
        for function in self.phases.values():
            value = function(value)
            marks.append(_mark(cuda))
        if cuda:
            # Not between phases: a phase overlaps with the launch of the next one.
            torch.cuda.synchronize()
        after = torch.cuda.memory_allocated() if cuda else 0
        del value
        if keep:
            for phase, start, end in zip(self.phases, marks, marks[1:], strict=False):
                seconds = start.elapsed_time(end) / 1e3 if cuda else end - start
                self.seconds.setdefault(phase, []).append(seconds)
            if cuda:
                self.peak.append(torch.cuda.max_memory_allocated() - before)
                self.kept.append(after - before)
        self.tidy()

    def weigh(self) -> None:
        """Run once on a CPU to measure the memory. There is no clock: the profiler takes time."""
        cpu, value = torch.profiler.ProfilerActivity.CPU, None
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # otherwise it logs each start and stop
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
            for function in self.phases.values():
                value = function(value)
        events = profile.profiler.kineto_results.events()
        memory = sorted((e for e in events if e.name() == "[memory]"), key=_start)
        used = list(itertools.accumulate((e.nbytes() for e in memory), initial=0))
        self.peak.append(max(used))
        self.kept.append(used[-1])
        del value
        self.tidy()

    def record(self) -> dict[str, Any]:
        what = dict(scene=self.scene, boxes=self.boxes, name=self.name)
        memory = dict(peak_bytes=self.peak, kept_bytes=self.kept)
        return dict(what, seconds=self.seconds, **memory)


def _start(event: Any) -> int:
    """The start of an event of the profiler. PyTorch before 2.4 counts microseconds."""
    return event.start_ns() if hasattr(event, "start_ns") else event.start_us()


def _mark(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def take_turns(
    turns: Sequence[Turn],
    *,
    rounds: int,
    warm_up: int = 2,
    device: torch.device | str = "cpu",
    minutes: float = math.inf,
    after_round: Callable[[], None] = lambda: None,
) -> int:
    """Run all turns in each round.

    Each round begins with another turn, so that other work on the machine disturbs all turns alike.

    Args:
        rounds: rounds that count.
        warm_up: rounds before them that do not count.
        device: the device that the work runs on.
        minutes: no round starts that would probably end later than this. The first round that
            counts always runs. On a CPU, there is one additional round for the memory.
        after_round: called after each round.

    Returns:
        the number of rounds that count.
    """
    device, start = torch.device(device), time.perf_counter()
    last = device.type != "cuda"  # one more round, for the memory
    for i in range(warm_up + rounds):
        first = i % len(turns)
        for turn in [*turns[first:], *turns[:first]]:
            turn.take(device, keep=i >= warm_up)
        after_round()
        elapsed = time.perf_counter() - start
        if i >= warm_up and elapsed * (i + 2 + last) / (i + 1) > 60 * minutes:
            rounds = i + 1 - warm_up
            break
    for turn in turns if last else ():
        turn.weigh()
    return rounds


class Spread(NamedTuple):
    """Median, lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(*[float(values[0])] * 3)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def show(self, scale: float = 1.0) -> str:
        def number(x: float) -> str:
            return f"{scale * x:,.{2 if abs(scale * self.median) < 10 else 1}f}"

        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


def total_seconds(measurement: Mapping[str, Any]) -> list[float]:
    """Seconds of all phases together, in each round."""
    return [sum(phases) for phases in zip(*measurement["seconds"].values(), strict=True)]


class Ratio(NamedTuple):
    """A quotient of times of the same round, or of another value of each measurement.

    Attributes:
        name: name of the ratio.
        over: name of a turn -> factor; the numerator is the sum of factor times value.
        under: names of turns; the denominator is the sum of their values.
        value: measurement -> its value in each round; default: its seconds.
    """

    name: str
    over: Mapping[str, int]
    under: Sequence[str]
    value: Callable[[Mapping[str, Any]], list[float]] = total_seconds

    def of(self, totals: Mapping[str, Sequence[float]]) -> list[float]:
        """
        Args:
            totals: name of a turn -> its value in each round.

        Returns:
            the quotient in each round.
        """
        over = zip(*([k * x for x in totals[name]] for name, k in self.over.items()), strict=True)
        under = zip(*(totals[name] for name in self.under), strict=True)
        return [sum(a) / sum(b) for a, b in zip(over, under, strict=True)]

    def records(self, measurements: Sequence[dict]) -> Iterator[dict[str, Any]]:
        """Median and quartiles, for each scene in which all its turns were measured."""
        for scene, boxes in dict.fromkeys((m["scene"], m["boxes"]) for m in measurements):
            here = [m for m in measurements if (m["scene"], m["boxes"]) == (scene, boxes)]
            totals = {m["name"]: values for m in here if (values := self.value(m))}
            if {*self.over, *self.under} <= totals.keys():
                spread = Spread.of(self.of(totals))._asdict()
                yield dict(scene=scene, boxes=boxes, name=self.name, **spread)


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a table for each scene, with a column for each number of boxes."""
    parts = []
    for scene in dict.fromkeys(m["scene"] for m in results["measurements"]):
        rows: dict[str, dict[int, str]] = {}

        def put(row: str, boxes: int, text: str, rows: dict = rows) -> None:
            rows.setdefault(row, {})[boxes] = text

        here = [m for m in results["measurements"] if m["scene"] == scene]
        for m in here:
            for phase, seconds in m["seconds"].items():
                row = m["name"] if len(m["seconds"]) == 1 else f"{m['name']}: {phase}"
                put(f"{row}, ms", m["boxes"], Spread.of(seconds).show(1e3))
        for m in here:
            if m["peak_bytes"]:
                put(f"{m['name']}, MiB", m["boxes"], f"{max(m['peak_bytes']) / 2**20:,.0f}")
        for r in results["ratios"]:
            if r["scene"] == scene:
                spread = Spread(r["median"], r["low"], r["high"])
                put(f"ratio: {r['name']}", r["boxes"], spread.show())
        counts = sorted({m["boxes"] for m in here})
        head = [scene, *(f"{boxes} boxes" for boxes in counts)]
        cells = [[row, *(values.get(b, "") for b in counts)] for row, values in rows.items()]
        align = ["left"] + ["right"] * len(counts)
        parts.append(
            tabulate(cells, head, tablefmt="github", disable_numparse=True, colalign=align)
        )
    return "\n\n".join([*parts, *(textwrap.fill(note, 100) for note in results["notes"])])


def picture(results: Mapping[str, Any]) -> bytes:
    """Draw the times and the ratios of each scene, with quartiles, by the number of boxes.

    Returns:
        the bytes of a PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, SymmetricalLogLocator

    times = [
        dict(m, **Spread.of([1e3 * s for s in total_seconds(m)])._asdict())
        for m in results["measurements"]
    ]
    scenes = list(dict.fromkeys(m["scene"] for m in times))
    figure = Figure(figsize=(13, 1 + 4.5 * len(scenes)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(scenes), 2, squeeze=False)
    for scene, row in zip(scenes, axes, strict=True):
        row[0].set_xscale("log")
        row[1].set_xscale("symlog", linthresh=1)  # a difference can be below 0
        for ax in row:
            ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
        for ax, records, title in zip(
            row, (times, results["ratios"]), ("milliseconds", "ratios"), strict=True
        ):
            here = [r for r in records if r["scene"] == scene]
            _dots(ax, here)
            ax.set_title(f"{title}\n{scene}", loc="right", fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _dots(ax, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw medians with quartiles: one row for each name, one color for each number of boxes."""
    names = list(dict.fromkeys(r["name"] for r in records))
    counts = sorted({r["boxes"] for r in records})
    for i, boxes in enumerate(counts):
        here = [r for r in records if r["boxes"] == boxes]
        y = [names.index(r["name"]) + 0.2 * (i - (len(counts) - 1) / 2) for r in here]
        median = [r["median"] for r in here]
        sides = [[r["median"] - r["low"] for r in here], [r["high"] - r["median"] for r in here]]
        ax.errorbar(median, y, xerr=sides, fmt="o", markersize=4, label=f"{boxes} boxes")
    ax.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names], fontsize=8)
    ax.invert_yaxis()
    ax.grid(alpha=0.3)
    if counts:
        ax.legend(fontsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
