"""An ETA that follows what the last minute took."""

from __future__ import annotations

import datetime

from detectron2.utils.events import CommonMetricPrinter, EventStorage

from ..progress import WINDOW

__all__ = ["RecentETAPrinter"]


class RecentETAPrinter(CommonMetricPrinter):
    """Detectron2's `CommonMetricPrinter` with another ETA.

    Detectron2 multiplies the remaining iterations by the median time of the last 1000 iterations.
    On a machine that has become busy, that median stays low for a long time. This class uses the
    mean time of the iterations of the last minute, at least one. Like Detectron2's, the ETA does
    not include evaluations and checkpoints. It stands in log.txt, and as `eta_seconds` in
    metrics.json and TensorBoard.

    Args:
        max_iter: iterations of the whole training.
        window_size: iterations over which losses are smoothed, see `CommonMetricPrinter`.
        window: seconds of training that the ETA looks back.
    """

    def __init__(self, max_iter: int, window_size: int = 20, window: float = WINDOW):
        super().__init__(max_iter, window_size)
        self._last_iter, self._window = max_iter, window

    def _get_eta(self, storage: EventStorage) -> str | None:
        try:
            times = storage.history("time").values()  # [(seconds, iteration)], oldest first
        except KeyError:  # IterationTimer begins with the third iteration
            return super()._get_eta(storage)
        seconds, steps = 0.0, 0
        for value, _ in reversed(times):
            seconds, steps = seconds + value, steps + 1
            if seconds >= self._window:
                break
        eta = seconds / steps * max(self._last_iter - storage.iter - 1, 0)
        storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        return str(datetime.timedelta(seconds=int(eta)))
