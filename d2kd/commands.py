"""How a command runs: threads, arguments, and errors that the user can mend.

An error that the user can mend is shown as two or three lines, and the exit status is 2. `--debug`
shows its traceback, too. Every other error keeps its traceback: it may be a bug. This module does
not import PyTorch: the number of threads must be set first, see `d2kd.threads`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from .files import file_in_the_way
from .threads import child_environment, configure_threads

__all__ = [
    "add_debug",
    "call",
    "config_first",
    "describe_error",
    "launch_processes",
    "parse_arguments",
    "plain_errors",
    "run_tool",
]

DEBUG = "--debug"
_DEBUG_VARIABLE = "D2KD_DEBUG"  # tells child processes of --debug

_SECONDS_TO_STOP = 30  # for processes that Ctrl-C ends; they are killed then

_PACKAGES = ("torch", "torchvision", "detectron2")
# A disk that is full or read-only, a folder in the way: the user can mend these. What else the
# system reports is not foreseen.
_SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
)


def run_tool(module: str, name: str, argv: Sequence[str]) -> int:
    """Import a module of `d2kd.tools` and call its `main(argv)`.

    Args:
        module: its name, such as "evaluate".
        name: of the command, for messages, such as "d2kd evaluate".
        argv: the arguments, which may contain --debug anywhere.

    Returns:
        exit status: what `main` returns; 2 for an error that the user can mend; 130 after an
        interruption.
    """
    configure_threads()
    # PyTorch warns about Detectron2's code and about its own. Our own warnings are shown.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    return call(
        name, lambda words: importlib.import_module(f"d2kd.tools.{module}").main(words), argv
    )


def call(name: str, main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> int:
    """Call `main` with the arguments, and show an error that the user can mend without a traceback.

    Args:
        name: of the command, for messages.
        main: function of the arguments without --debug.
        argv: default: the arguments of the process.

    Returns:
        exit status, see `run_tool`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Here and not in the parsers: the overrides of a config may come before it.
    debug = DEBUG in words
    words = [word for word in words if word != DEBUG]
    if debug:
        os.environ[_DEBUG_VARIABLE] = "1"
    try:
        with _sigterm_as_ctrl_c():
            return main(words) or 0
    except KeyboardInterrupt as stop:
        _end_workers()
        advice = f". {stop}" if stop.args else ""  # how to go on, where a tool knows it
        print(f"{name}: interrupted{advice}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    except Exception as error:
        message = describe_error(error)
        if message is None:
            raise
        _show(name, message, error)
        return 2
    finally:
        if debug:
            os.environ.pop(_DEBUG_VARIABLE, None)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, by which batch systems and containers end a process."""


def _terminate(number: int, frame: Any) -> None:
    """The handler of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise _Terminated


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
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


def config_first(argv: Sequence[str] | None) -> list[str]:
    """The arguments, with the config in front if it is given as --config-file.

    Commands without Detectron2's parser take the config as their first argument. Users know the
    flag from `d2kd train` and from Detectron2.

    Args:
        argv: default: the arguments of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--config-file" and (equals or words[i + 1 :]):
            rest = words[i + 1 :] if equals else words[i + 2 :]
            return [value if equals else words[i + 1], *words[:i], *rest]
    return words


def _show(name: str, message: str, error: BaseException | None = None) -> None:
    sys.stdout.flush()  # what was printed before comes first where both go to one file
    if os.environ.get(_DEBUG_VARIABLE):
        if error is not None:
            traceback.print_exception(type(error), error, error.__traceback__)
        print(f"{name} stopped.", file=sys.stderr)
    else:
        print(f"{name} stopped ({DEBUG} shows where in the code).", file=sys.stderr)
    print(message, file=sys.stderr, flush=True)


def describe_error(error: BaseException) -> str | None:
    """The message of an error that the user can mend; None for any other error.

    Our own messages say what was expected and what was found. Messages of Python and PyTorch do not
    have both words ("not enough values to unpack (expected 2, got 1)").
    """
    if isinstance(error, _ChildError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        return f"{error.name} is not installed; `make setup` in the repository installs it."
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno not in _SYSTEM_ERRORS:
            return None
        if "expected" not in text:
            name = error.filename if error.filename is not None else "a file"
            if error.errno in (errno.EEXIST, errno.ENOTDIR) and (file := file_in_the_way(name)):
                return (
                    f"expected a folder at {name!r}, or a path at which one can be made, found "
                    f"that {file!r} is a file. Give another path, or rename this file."
                )
            return f"expected to use {name!r}, found: {error.strerror}."
    # RuntimeError is PyTorch's ("expected scalar type Float but found Double").
    own = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
    if not isinstance(error, own) or "expected" not in text or "found" not in text:
        return None
    # The message of an error in a worker of a data loader is its traceback, and the error's own
    # message is at its end.
    if "Traceback (most recent call last)" in text:
        last = text.rstrip().splitlines()[-1].split(": ", 1)
        return last[-1] if "expected" in last[-1] and "found" in last[-1] else None
    return text


@contextlib.contextmanager
def plain_errors(logger: str) -> Iterator[None]:
    """In the block, log errors that the user can mend by their message, without a traceback.

    Args:
        logger: name of the logger that logs the errors.
    """

    def shorten(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        message = describe_error(error) if error is not None else None
        if message is not None and not os.environ.get(_DEBUG_VARIABLE):
            record.msg, record.args, record.exc_info = f"Stopped: {message}", (), None
        return True

    logging.getLogger(logger).addFilter(shorten)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(shorten)


class _ChildError(Exception):
    """An error that the user can mend, in a child process."""


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
        raise _ChildError(messages.get()) from None
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


def _end_workers() -> None:
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
        _end_workers()  # and no exit status: PyTorch would report it
    except Exception as error:
        message = describe_error(error)
        if message is None:
            raise
        if os.environ.get(_DEBUG_VARIABLE):
            traceback.print_exc()
        messages.put(message[:2000])  # a pipe takes some messages that are not read yet
        sys.exit(2)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add --debug to the help of a command. `call` takes it from the arguments."""
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of every error")


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, config: bool = True
) -> Any:
    """Parse the arguments of a parser that Detectron2's `default_argument_parser` made.

    Options may come before and after the overrides of the config, and the config may come without
    --config-file. Detectron2's parser takes everything after the first override for overrides.

    Args:
        parser: its `opts` are changed.
        argv: default: the arguments of the process.
        config: whether there must be a config.
    """
    for action in parser._actions:
        if action.dest == "opts":
            action.nargs, action.default = "*", []
            action.help = "fields of the config, key=value"
    add_debug(parser)
    args = parser.parse_intermixed_args(argv)
    first = args.opts[0] if args.opts else ""
    if not args.config_file and first.endswith((".py", ".yaml", ".yml")) and "=" not in first:
        args.config_file = args.opts.pop(0)
    if config and not args.config_file:
        parser.error("expected a config (--config-file FILE), found none")
    return args
