import io
import logging
import subprocess
import sys

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


def test_the_log_of_a_training_has_no_color_codes_and_each_line_once(tmp_path):
    # default_setup highlights the config that it logs, also where it writes to a file.
    config = tmp_path / "config.py"
    config.write_text("train = dict(seed=-1, output_dir=None, cudnn_benchmark=False)\n")
    code = f"""
from argparse import Namespace
from detectron2.config import LazyConfig
from detectron2.engine import default_setup
from d2kd.logs import setup_loggers
cfg = LazyConfig.load({str(config)!r})
cfg.train.output_dir = {str(tmp_path)!r}
setup_loggers(cfg.train.output_dir, 0)
default_setup(cfg, Namespace(config_file={str(config)!r}, eval_only=False))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (tmp_path / "log.txt").read_text()):
        assert "\x1b" not in text and "cudnn_benchmark=False" in text
        assert text.count("Command line arguments") == 1
