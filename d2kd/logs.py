"""Log files without color codes."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from logging.handlers import BufferingHandler

__all__ = ["PlainFormatter", "hold_messages", "remove_colors", "setup_loggers"]

_COLOR_CODE = re.compile(r"\x1b\[[0-9;]*m")


class PlainFormatter(logging.Formatter):
    """Formats by another formatter, without the codes that color a terminal."""

    def __init__(self, formatter: logging.Formatter | None):
        super().__init__()
        self.formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return _COLOR_CODE.sub("", self.formatter.format(record))


@contextlib.contextmanager
def hold_messages() -> Iterator[list[logging.LogRecord]]:
    """Collect what d2kd logs in the block, for `setup_loggers`: it comes before the log file."""
    logger, handler = logging.getLogger("d2kd"), BufferingHandler(1000)
    handlers, logger.handlers = logger.handlers, [handler]
    messages: list[logging.LogRecord] = []
    try:
        yield messages
        messages += handler.buffer
    finally:
        logger.handlers = handlers


def setup_loggers(output_dir: str, rank: int, held: Iterable[logging.LogRecord] = ()) -> None:
    """Set up the loggers of a training so that its log files have no color codes.

    Call it before Detectron2's `default_setup`, which logs the highlighted config at once. That
    function calls `setup_logger` with the same arguments. The call is cached, so that the loggers
    stay as they are.

    Args:
        output_dir: folder of log.txt.
        rank: of this process.
        held: messages from `hold_messages`, which are logged now.
    """
    from detectron2.utils.logger import setup_logger

    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    setup_logger(output_dir, distributed_rank=rank)
    setup_logger(output_dir, distributed_rank=rank, name="d2kd")
    remove_colors()
    for record in held:
        logging.getLogger(record.name).handle(record)


def remove_colors(loggers: Iterable[str] = ("detectron2", "fvcore", "d2kd")) -> None:
    """Keep color codes out of everything that the loggers write to files and pipes.

    Detectron2 colors some messages themselves, such as the table of instances by category. They
    would be unreadable in log.txt. Terminals keep their colors.
    """
    for name in loggers:
        for handler in logging.getLogger(name).handlers:
            plain = isinstance(handler.formatter, PlainFormatter)
            if not plain and not _writes_to_terminal(handler):
                handler.setFormatter(PlainFormatter(handler.formatter))


def _writes_to_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    if stream is None or getattr(stream, "closed", False):
        return False
    return hasattr(stream, "isatty") and stream.isatty()
