"""The life of a command's processes: how they are started, and how Ctrl-C and SIGTERM end them.

This module does not import PyTorch at its top: the number of threads must be set first, see
`d2kd.threads`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from .plain_errors import ChildError, debugs, describe_error
from .threads import child_environment

__all__ = ["Terminated", "end_workers", "launch_processes", "sigterm_as_ctrl_c"]

_SECONDS_TO_STOP = 30  # for processes that Ctrl-C ends; they are killed then


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which batch systems and containers end a process."""


def _terminate(number: int, frame: Any) -> None:
    """The handler of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise Terminated


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with the same message.

    A handler that is set already stays. Outside the main thread, where Python forbids handlers,
    this does nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def launch_processes(launch: Callable, main: Callable, processes: int, machines: int = 1) -> None:
    """Start processes that share the CPUs, and report an error of one of them once.

    Ctrl-C reaches this process alone. It then ends the others, so that each of them stops at one
    place and nothing but the main process reports it.

    Args:
        launch: function of a picklable function; it runs that function in each process and returns
            after the last. With one process on one machine, it calls the function itself.
        main: what each process calls.
        processes: their number on this machine.
        machines: number of machines.
    """
    if processes * machines <= 1:
        launch(main)
        return
    before = dict(os.environ)
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    os.environ.update(child_environment(processes))
    try:
        _wait_for(launch, functools.partial(_in_child, main, messages))
    except Exception:
        # Its text is the traceback of the child.
        if messages.empty():
            raise
        raise ChildError(messages.get()) from None
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _wait_for(launch: Callable, function: Callable) -> None:
    """Call `launch(function)`; at Ctrl-C, end the processes that it has started."""
    # Processes inherit blocked signals from the thread that starts them. This is the only way to
    # keep Ctrl-C from a process that still imports PyTorch, and from the workers of its loaders.
    block = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK, [signal.SIGINT])
    others = multiprocessing.active_children()
    with ThreadPoolExecutor(1, initializer=block) as thread:
        done = thread.submit(launch, function)
        try:
            done.result()
        except KeyboardInterrupt:
            # It would report the processes that end after the first one.
            logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            wait([done], timeout=_SECONDS_TO_STOP)
            raise
        finally:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.kill()


def end_workers() -> None:
    """End the workers of a data loader that was interrupted while it started them.

    Python would end them when it exits, and PyTorch's handler would report that with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # a notebook's; only a main thread sets handlers
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    signal.signal(signal.SIGCHLD, handler)


def _stop_with_sigterm() -> None:
    """Make SIGTERM in this process what Ctrl-C is elsewhere."""
    from torch import multiprocessing as torch_multiprocessing

    def stop_later(unraisable: Any) -> None:
        # Python drops an exception that comes in one of its own callbacks, for example after a
        # fork, and goes on. So try again in a moment.
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.signal(signal.SIGTERM, _terminate)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            sys.__unraisablehook__(unraisable)

    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = stop_later
    # On Linux, PyTorch lets the death of the main process send SIGINT, which is blocked here.
    if set_signal := getattr(torch_multiprocessing, "_prctl_pr_set_pdeathsig", None):
        set_signal(signal.SIGTERM)


def _in_child(main: Callable, messages: Any, *args: Any) -> None:
    _stop_with_sigterm()
    try:
        main(*args)
    except KeyboardInterrupt:
        end_workers()  # and no exit status: PyTorch would report it
    except Exception as error:
        message = describe_error(error)
        if message is None:
            raise
        if debugs():
            traceback.print_exc()
        messages.put(message[:2000])  # a pipe takes some messages that are not read yet
        sys.exit(2)
