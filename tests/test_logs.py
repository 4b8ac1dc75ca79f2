import io
import logging

import pytest

from d2kd.logs import remove_colors


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logger():
    logger = logging.getLogger("toy_logs")
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def add(logger, stream):
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    logger.addHandler(handler)
    return stream


def test_a_file_gets_no_color_codes_and_a_terminal_keeps_them(logger):
    file, terminal = add(logger, io.StringIO()), add(logger, Terminal())
    remove_colors([logger.name])
    logger.warning("classes: \x1b[36m|cat|\x1b[0m and \x1b[1;31mred %d\x1b[0m", 3)
    assert file.getvalue() == "[WARNING] classes: |cat| and red 3\n"
    assert terminal.getvalue().count("\x1b[") == 4


def test_twice_is_as_once(logger):
    file = add(logger, io.StringIO())
    for _ in range(2):
        remove_colors([logger.name])
    logger.warning("\x1b[36mx\x1b[0m")
    assert file.getvalue() == "[WARNING] x\n"
    formatter = logger.handlers[0].formatter
    assert not hasattr(formatter.formatter, "formatter")  # wrapped once


def test_a_handler_whose_stream_is_closed_is_accepted(logger):
    stream = add(logger, io.StringIO())
    stream.close()
    remove_colors([logger.name])
    assert type(logger.handlers[0].formatter).__name__ == "PlainFormatter"
