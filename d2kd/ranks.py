"""Run something in the main process only, while the others wait, and pass its error on to all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from detectron2.utils import comm

__all__ = ["on_main_process"]

T = TypeVar("T")
PAUSE = 0.5  # seconds between two signs of life


def on_main_process(function: Callable[[], T]) -> T:
    """Call `function` in the main process, and return its result in all processes.

    Waiting in one collective would time out after minutes. The main process therefore works in a
    thread, and all processes exchange a sign of life in the meantime. `function` must not
    communicate with other processes.

    Returns:
        what `function` returned; it must be picklable if there are several processes.

    Raises:
        Exception: whatever `function` raised, in the main process; in the others, a
            ValueError with its message.
    """
    if comm.get_world_size() == 1:
        return function()
    result: dict[str, Any] = {}

    def work() -> None:
        try:
            result["value"] = function()
        except BaseException as error:
            result["error"] = error

    thread = None
    if comm.is_main_process():
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
    while True:
        if thread is not None:
            thread.join(PAUSE)
        state = None
        if thread is not None and not thread.is_alive():
            error = result.get("error")
            state = {"error": None if error is None else f"{error}", "value": result.get("value")}
        told = comm.all_gather(state)[0]
        if told is not None:
            break
        if thread is None:
            time.sleep(PAUSE)
    if thread is not None and "error" in result:
        raise result["error"]
    if told["error"] is not None:
        raise ValueError(told["error"])
    return told["value"]
