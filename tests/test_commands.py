"""How commands run: errors that the user can mend, --debug, arguments, processes, threads."""

import argparse
import ast
import errno
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


@pytest.mark.parametrize(
    "error, shown",
    [
        (ValueError("a: expected b, found c"), "a: expected b, found c"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pth"), "No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.py"), "'a.py', found: No such file"),
        (ModuleNotFoundError("no", name="torch"), "torch is not installed"),
        (FloatingPointError("loss: expected finite numbers, found nan"), "expected finite"),
        # in a worker of a data loader
        (
            ValueError(
                "Caught ValueError in DataLoader worker process 0.\n"
                "Original Traceback (most recent call last):\n  ...\n"
                "ValueError: 5.png: expected an image, found garbage\n"
            ),
            "5.png: expected an image, found garbage",
        ),
    ],
)
def test_errors_that_the_user_can_mend(error, shown):
    assert shown in commands.describe_error(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not enough values to unpack (expected 2, got 1)"),
        TypeError("expected str, bytes or os.PathLike object, not NoneType"),
        RuntimeError("expected scalar type Float but found Double"),
        RuntimeError("Expected all tensors to be on the same device, but found two"),
        KeyError("expected, found"),
        AssertionError("expected a, found b"),
        OSError(errno.EBADF, "Bad file descriptor"),
        ModuleNotFoundError("no", name="scipy"),
        ValueError("Caught\nTraceback (most recent call last):\nValueError: expected a"),
    ],
)
def test_errors_that_may_be_bugs(error):
    assert commands.describe_error(error) is None


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_file_in_place_of_a_folder_is_named_with_the_fix(tmp_path, below):
    (tmp_path / "out").touch()
    with pytest.raises(OSError) as error:
        os.makedirs(f"{tmp_path}/out{below}")
    text = commands.describe_error(error.value)
    assert f"found that '{tmp_path}/out' is a file. Give another path, or rename" in text
    with pytest.raises(OSError) as error:
        os.mkdir(tmp_path)  # a folder is there
    assert "found: File exists" in commands.describe_error(error.value)


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


def in_a_child(kind: str) -> None:
    if kind == "threads":
        raise ValueError(f"expected threads, found {os.environ['OMP_NUM_THREADS']}")
    raise RuntimeError("a bug")


def start(function) -> None:
    import torch.multiprocessing as mp

    mp.start_processes(_call, nprocs=2, args=(function,))


def _call(rank: int, function) -> None:
    function(start.kind if hasattr(start, "kind") else os.environ["KIND"])


def test_an_error_in_several_processes_is_shown_once(capfd, monkeypatch):
    monkeypatch.setenv("KIND", "threads")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cpus", lambda: 8)
    code = commands.call("tool", lambda argv: commands.launch_processes(start, in_a_child, 2), [])
    error = capfd.readouterr().err
    assert code == 2 and "Traceback" not in error
    assert error.count("expected threads, found 4") == 1  # two processes share eight CPUs
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_number_of_threads_of_the_user_goes_to_each_process(monkeypatch, capfd):
    monkeypatch.setenv("KIND", "threads")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    commands.call("tool", lambda argv: commands.launch_processes(start, in_a_child, 2), [])
    assert "found 3" in capfd.readouterr().err


def test_bugs_in_several_processes_keep_their_traceback(monkeypatch):
    monkeypatch.setenv("KIND", "bug")
    with pytest.raises(Exception, match="RuntimeError: a bug"):
        commands.launch_processes(start, in_a_child, 2)


INTERRUPTED = """
import signal, sys, time
from d2kd import commands

def start(function):
    import torch.multiprocessing
    torch.multiprocessing.start_processes(child, nprocs=2, args=(function,))

def child(rank, function):
    function(rank)

def work(rank):
    from torch.utils.data import DataLoader
    # Workers inherit that Ctrl-C is blocked.
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loader = iter(DataLoader(range(4), num_workers=1, multiprocessing_context="fork"))
    next(loader)
    try:
        print("ready" if blocked else "Ctrl-C gets through", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        raise

if __name__ == "__main__":
    main = lambda argv: commands.launch_processes(start, work, 2)
    sys.exit(commands.call("tool", main, []))
"""


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


@pytest.mark.parametrize("early", [False, True])
def test_ctrl_c_stops_several_processes_in_one_line(tmp_path, early):
    (tmp_path / "tool.py").write_text(INTERRUPTED)
    main = subprocess.Popen(
        [sys.executable, str(tmp_path / "tool.py")],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job, as these tests may be, ignores Ctrl-C and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The second process still imports PyTorch, or it is ready, too.
    lines = [main.stdout.readline() for _ in range(1 if early else 2)]
    os.killpg(main.pid, signal.SIGINT)
    out, err = main.communicate(timeout=60)
    assert main.returncode == 130 and err == "tool: interrupted\n"
    assert {*lines} == {"ready\n"} and (early or out.count("stopped") == 2)


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


# These pass on the text of another error, which has both words. The test cannot see it.
PASS_ON = (
    "d2kd/audit/errors.py",
    "d2kd/audit/report.py",
    "d2kd/ranks.py",
    "d2kd/checkpoint",
    "d2kd/data/convert/coco.py",
    "d2kd/data/convert/splits.py",
    "d2kd/data/convert/text.py",
    "d2kd/data/convert/voc.py",
    "d2kd/data/convert/yolo.py",
    "d2kd/tools/compare/entries.py",
)


def messages() -> list[tuple[str, str]]:
    """Place and text of each ValueError, TypeError and FileNotFoundError that d2kd raises."""
    found = []
    for path in sorted((ROOT / "d2kd").rglob("*.py")):
        if "configs" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in (
                "ValueError",
                "TypeError",
                "FileNotFoundError",
                "FileExistsError",
                "PermissionError",
            ):
                parts = [
                    x.value
                    for x in ast.walk(call)
                    if isinstance(x, ast.Constant) and isinstance(x.value, str)
                ]
                if parts:
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", " ".join(parts)))
    return found


def test_each_message_says_what_was_expected_and_found():
    """`describe_error` knows our errors by these words."""
    assert len(messages()) > 200
    lacking = [place for place, text in messages() if "expected" not in text or "found" not in text]
    assert [place for place in lacking if not place.startswith(PASS_ON)] == []
