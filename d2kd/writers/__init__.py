"""Event writers for training: what is logged, and where.

eta.py          Detectron2's log line, with another ETA
libraries.py    Weights & Biases and MLflow
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.engine import default_writers as detectron2_default_writers
from detectron2.utils.events import CommonMetricPrinter, EventWriter

from .eta import RecentETAPrinter
from .libraries import LIBRARIES, MLflowWriter, WandbWriter

__all__ = ["LIBRARIES", "MLflowWriter", "RecentETAPrinter", "WandbWriter", "default_writers"]


def default_writers(
    output_dir: str,
    max_iter: int,
    libraries: Mapping[str, Mapping[str, Any] | None] | None = None,
    *,
    resume: bool = False,
) -> list[EventWriter]:
    """Detectron2's `default_writers`, with `RecentETAPrinter` instead of `CommonMetricPrinter`.

    Args:
        output_dir: folder of metrics.json and TensorBoard's events.
        max_iter: iterations of the whole training.
        libraries: `train.writers`: name of a library -> its options; None to leave it out.
        resume: whether the run in `output_dir` goes on.

    Raises:
        ImportError: a library is not installed.
        ValueError: a library does not take its options.
    """
    writers = detectron2_default_writers(output_dir, max_iter)
    # Printers come first: they put eta_seconds, which the other writers then write. TensorBoard's
    # writer comes last, because it removes the pictures from the storage.
    others = [writer for writer in writers if not isinstance(writer, CommonMetricPrinter)]
    more = [
        LIBRARIES[name](output_dir, options, resume=resume)
        for name, options in (libraries or {}).items()
        if options is not None
    ]
    return [RecentETAPrinter(max_iter), *more, *others]
