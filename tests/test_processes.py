"""Processes of a command: their threads, their errors, and Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from d2kd import commands, processes, threads

ROOT = Path(__file__).parents[1]


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
    code = commands.call("tool", lambda argv: processes.launch_processes(start, in_a_child, 2), [])
    error = capfd.readouterr().err
    assert code == 2 and "Traceback" not in error
    assert error.count("expected threads, found 4") == 1  # two processes share eight CPUs
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_number_of_threads_of_the_user_goes_to_each_process(monkeypatch, capfd):
    monkeypatch.setenv("KIND", "threads")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    commands.call("tool", lambda argv: processes.launch_processes(start, in_a_child, 2), [])
    assert "found 3" in capfd.readouterr().err


def test_bugs_in_several_processes_keep_their_traceback(monkeypatch):
    monkeypatch.setenv("KIND", "bug")
    with pytest.raises(Exception, match="RuntimeError: a bug"):
        processes.launch_processes(start, in_a_child, 2)


INTERRUPTED = """
import signal, sys, time
from d2kd import commands, processes

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
    main = lambda argv: processes.launch_processes(start, work, 2)
    sys.exit(commands.call("tool", main, []))
"""


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
