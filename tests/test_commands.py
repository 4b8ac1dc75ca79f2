"""How commands run: their arguments, --debug, how they stop, and their threads."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from d2kd import commands, threads

ROOT = Path(__file__).parents[1]


def test_debug_shows_the_traceback_wherever_it_stands(capsys):
    given = []

    def main(argv):
        given.append(argv)
        raise ValueError("a: expected b, found c")

    assert commands.call("tool", main, ["x=1", "--debug", "--resume"]) == 2
    error = capsys.readouterr().err
    assert given == [["x=1", "--resume"]]
    assert "Traceback" in error and error.endswith("tool stopped.\na: expected b, found c\n")
    assert commands.call("tool", main, []) == 2
    assert "Traceback" not in capsys.readouterr().err


def parse(*argv: str) -> argparse.Namespace:
    parser = default_argument_parser()
    parser.add_argument("--dry-run", action="store_true")
    return commands.parse_arguments(parser, argv)


def test_options_may_follow_overrides():
    args = parse("--config-file", "a.py", "x.y=1", "--dry-run", "z=-2", "--num-gpus", "2")
    assert args.dry_run and args.num_gpus == 2 and args.opts == ["x.y=1", "z=-2"]


def test_the_config_may_come_without_its_flag():
    args = parse("a.py", "x=1")
    assert args.config_file == "a.py" and args.opts == ["x=1"]
    args = parse("--config-file", "a.py", "x=b.py")
    assert args.config_file == "a.py" and args.opts == ["x=b.py"]


def test_no_config_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("x=1")
    assert stop.value.code == 2 and "expected a config" in capsys.readouterr().err


def test_a_tool_may_say_how_to_go_on_after_ctrl_c(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt("The same command goes on.")

    assert commands.call("tool", interrupted, []) == 130
    assert capsys.readouterr().err == "tool: interrupted. The same command goes on.\n"


def test_sigterm_is_said_as_ctrl_c_is(capsys):
    def stopped(argv):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert commands.call("tool", stopped, []) == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "tool: interrupted\n"


@pytest.mark.parametrize(
    "given",
    [
        ["--config-file", "a.py", "x", "b=1"],
        ["x", "--config-file=a.py", "b=1"],
        ["a.py", "x", "b=1"],
    ],
)
def test_the_config_may_come_with_its_flag(given):
    assert commands.config_first(given) == ["a.py", "x", "b=1"]


@pytest.mark.parametrize("name", ["compare", "evaluate", "train", "data"])
def test_a_tool_as_a_module_sets_the_threads_before_torch(name):
    # Its help is printed after its imports, so that torch has read the environment by then.
    code = (
        "import runpy, sys, os\n"
        f"sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('d2kd.tools.{name}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "import torch; print('threads', torch.get_num_threads(), os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP"))}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert f"threads {threads.available_cpus()} 1000" in done.stdout, done.stderr


def test_a_mistake_is_plain_for_a_tool_as_a_module():
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "d2kd.tools.evaluate", "no.py", "--teacher"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and "'no.py'" in done.stderr
