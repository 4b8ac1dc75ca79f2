"""Errors that the user can mend are shown by their message, without a traceback.

`--debug` shows the traceback, too. Every other error keeps its traceback: it may be a bug. This
module does not import PyTorch, because `d2kd.commands` uses it before the number of threads is set.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator

from .files import file_in_the_way

__all__ = [
    "DEBUG",
    "ChildError",
    "debugging",
    "debugs",
    "describe_error",
    "plain_errors",
    "show_error",
]

DEBUG = "--debug"
_VARIABLE = "D2KD_DEBUG"  # tells child processes of --debug

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


def debugs() -> bool:
    """Whether --debug was given, to this process or to the one that started it."""
    return bool(os.environ.get(_VARIABLE))


@contextlib.contextmanager
def debugging(enabled: bool) -> Iterator[None]:
    """Show tracebacks in the block, here and in the processes that it starts.

    Args:
        enabled: if False, this does nothing.
    """
    if not enabled:
        yield
        return
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE, None)


class ChildError(Exception):
    """An error that the user can mend, in a child process. Its text is the message."""


def describe_error(error: BaseException) -> str | None:
    """The message of an error that the user can mend; None for any other error.

    Our own messages say what was expected and what was found. Messages of Python and PyTorch do not
    have both words ("not enough values to unpack (expected 2, got 1)").
    """
    if isinstance(error, ChildError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        return f"{error.name} is not installed; `make setup` in the repository installs it."
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno not in _SYSTEM_ERRORS:
            return None
        # Not `text`: it has the name of the file, which may have any words.
        if "expected" not in (error.strerror or ""):
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
        last = re.split(r"^[\w.]+(?:Error|Exception): ", text.rstrip(), flags=re.MULTILINE)[-1]
        return last if "expected" in last and "found" in last else None
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
        if message is not None and not debugs():
            record.msg, record.args, record.exc_info = f"Stopped: {message}", (), None
        return True

    logging.getLogger(logger).addFilter(shorten)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(shorten)


def show_error(name: str, message: str, error: BaseException) -> None:
    """Print the message of an error, and with --debug its traceback before it.

    Args:
        name: of the command.
        message: what `describe_error` says of the error.
        error: it.
    """
    sys.stdout.flush()  # what was printed before comes first where both go to one file
    if debugs():
        traceback.print_exception(type(error), error, error.__traceback__)
        print(f"{name} stopped.", file=sys.stderr)
    else:
        print(f"{name} stopped ({DEBUG} shows where in the code).", file=sys.stderr)
    print(message, file=sys.stderr, flush=True)
