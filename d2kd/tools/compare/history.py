"""What a run's metrics.json says about its length, its speed and its AP on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["History", "history_of"]


class History(NamedTuple):
    """How a training went.

    Args:
        steps: steps of the optimizer, each counted once, also where a resumed run repeated it.
        seconds: mean time of a step, without evaluations and checkpoints; None if unknown.
        points: (steps that were done, box AP in percent) of each evaluation.
    """

    steps: int = 0
    seconds: float | None = None
    points: tuple[tuple[int, float], ...] = ()


def history_of(lines: Iterable[Mapping]) -> History:
    """Read a history from the lines that Detectron2's `JSONWriter` wrote.

    A line with losses is written after each `train.log_period` steps. Its `time` is the median time
    of the last 20 steps; here it counts for all steps since the line before. `IterationTimer`
    measures only the step itself: data, student, teacher, methods and optimizer.

    Args:
        lines: see `d2kd.metrics.read_metrics`.
    """
    times: dict[int, float | None] = {}  # iteration -> "time"; the first iteration is 0
    scores: dict[int, float] = {}  # iteration -> AP
    for line in lines:
        now = line.get("iteration")
        if now is None:
            continue
        if "total_loss" in line:
            if times and now <= max(times):
                # The run was resumed from a checkpoint and repeats what comes after it.
                times = {i: value for i, value in times.items() if i < now}
                scores = {i: value for i, value in scores.items() if i < now}
            times[now] = line.get("time")
        if "bbox/AP" in line:
            ap = float(line["bbox/AP"])
            scores[now] = 0.0 if math.isnan(ap) else ap  # Detectron2's word for no detections
    steps = max(times, default=-1) + 1
    done, known, seconds = 0, 0, 0.0
    for now in sorted(times):
        time = times[now]
        if time is not None:  # IterationTimer leaves out the first two iterations of a start
            seconds += time * (now + 1 - done)
            known += now + 1 - done
        done = now + 1
    # The iteration of the last evaluation is the number of steps, and not the last step's index.
    points = tuple((min(i + 1, steps), ap) for i, ap in sorted(scores.items())) if steps else ()
    return History(steps, seconds / known if known else None, points)
