"""The worker processes of data loaders."""

from __future__ import annotations

import signal

__all__ = ["ignore_interrupts"]


def ignore_interrupts(worker: int = 0) -> None:
    """Ignore Ctrl-C in this worker; the main process ends it, with SIGTERM.

    The terminal sends Ctrl-C to all processes. If a worker ended first, the main process would
    report an error of the worker, with a traceback.

    Args:
        worker: its number, as `DataLoader(worker_init_fn=...)` gives it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of the main process
