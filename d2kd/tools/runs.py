"""Start trainings in processes of their own, watch them, measure their memory and end them.

This module must not import PyTorch. Linux counts the memory of the process that starts another one
as that one's too, so that a large process here would hide how much memory a training takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import d2kd
from d2kd.files import write_file
from d2kd.threads import child_environment
from d2kd.tools.watch import Watch

__all__ = [
    "Run",
    "end_with_signals",
    "environment",
    "is_running",
    "run_all",
    "visible_as",
]

TRAIN = (sys.executable, "-m", "d2kd.tools.train")
OUTPUT = "output.txt"  # what a run prints
TAIL = 15  # lines of a failed run's output that are shown
# Warnings of the libraries about one another. Users can do nothing about them.
NOISE = ("torch.meshgrid", "`torch.jit.script", "pkg_resources is deprecated")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, or one evaluation, in a folder of its own.

    The folder holds what train_net.py writes, what it prints (output.txt) and the memory that it
    used (usage.json). While the run lasts, output.txt is locked.

    Args:
        title: names the run in progress lines and errors.
        folder: its output folder. A run that was interrupted goes on from the checkpoint in it.
        config: path of its config.
        overrides: fields of the config, as train_net.py takes them.
        max_iter: number of its iterations, for the ETA; None if that is unknown.
        mode: "--eval-only" or "--eval-teacher" for an evaluation; "" for a training.
    """

    title: str
    folder: Path
    config: str
    overrides: tuple[str, ...] = ()
    max_iter: int | None = None
    mode: str = ""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / "model_final.pth").exists()

    @property
    def trains(self) -> bool:
        """Whether it is a training, and not an evaluation."""
        return not self.mode

    @property
    def resumes(self) -> bool:
        """Whether it goes on from a checkpoint in its folder."""
        return self.trains and (self.folder / "last_checkpoint").exists()

    @property
    def output(self) -> Path:
        """The file with everything that the run prints."""
        return self.folder / OUTPUT

    def command(self, device: str | None = None) -> list[str]:
        """The command line of the process. It says --resume only if there is a checkpoint.

        Args:
            device: see `start`.
        """
        quoted = str(self.folder.resolve()).replace('"', '\\"')
        # An override of the same field comes later, so that it decides.
        kind = [f"train.device={device.partition(':')[0]}"] if device else []
        options = [*kind, *self.overrides, f'train.output_dir="{quoted}"']
        mode = ["--resume"] if self.resumes else [self.mode] if self.mode else []
        return [*TRAIN, *mode, "--config-file", self.config, *options]

    def prepare(self) -> None:
        """Is called before the process starts, when the folder is locked. Subclasses use it."""

    def start(self, device: str | None = None, at_a_time: int = 1) -> subprocess.Popen:
        """Start the process in the current folder.

        Args:
            device: "cpu" or "cuda:N" of the GPUs that are visible here; None leaves the choice to
                the config.
            at_a_time: number of runs that share the CPUs of this machine.

        Raises:
            RuntimeError: another process works in this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.output, "ab") as log:
            try:
                # The process inherits the open file, and with it the lock, until it ends.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"another process still works on it, in {self.folder}. When that process has "
                    f"ended, the same command takes its result, or goes on from its last "
                    f"checkpoint."
                ) from None
            self.prepare()
            return subprocess.Popen(
                self.command(device),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(device, at_a_time),
            )

    def note_usage(self, rss: float, at_a_time: int) -> None:
        """Write usage.json: the largest values over all starts of this run.

        Args:
            rss: peak memory of the largest process, in MiB.
            at_a_time: number of runs that shared the machine.
        """
        now = {"RSS MiB": rss, "at a time": at_a_time}
        before = self.usage()
        most = {key: max(value, before.get(key, 0)) for key, value in now.items()}
        write_file(self.folder / "usage.json", json.dumps(most))

    def usage(self) -> dict[str, float]:
        """The content of usage.json, {} if there is none."""
        path = self.folder / "usage.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def problem(self, code: int) -> str:
        """Say why the run is not finished although its process has ended; "" if all is well.

        Args:
            code: exit status of the process.
        """
        if code == 0 and self.finished:
            return ""
        tail = "\n".join(self.output.read_text(errors="replace").splitlines()[-TAIL:])
        why = f"exit status {code}" if code else f"it ended {self.lacks}"
        return (
            f"{why}\n  command  {shlex.join(self.command())}\n"
            f"  output   {self.output}, which ends in\n{tail}"
        )

    @property
    def lacks(self) -> str:
        """What is missing in the folder of a run that ended without an error, in words."""
        return "without model_final.pth"


def is_running(folder: Path) -> bool:
    """Whether a run that this module started is working in a folder."""
    path = folder / OUTPUT
    if not path.exists():
        return False
    with open(path, "rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def environment(device: str | None = None, at_a_time: int = 1) -> dict[str, str]:
    """The environment for a run: the environment of this process, changed as `Run.start` says.

    The runs share the CPUs as `d2kd.threads.child_environment` says.
    """
    quiet = [os.environ.get("PYTHONWARNINGS", ""), *(f"ignore:{words}" for words in NOISE)]
    env = {
        **child_environment(at_a_time),
        "PYTHONWARNINGS": ",".join(filter(None, quiet)),
        "PYTHONUNBUFFERED": "1",
        # termcolor: new versions look at the first, old ones at the second.
        "NO_COLOR": "1",
        "ANSI_COLORS_DISABLED": "1",
    }
    parent = Path(d2kd.__file__).resolve().parents[1]
    if parent.name not in ("site-packages", "dist-packages"):  # a checkout need not be installed
        env["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(parent), os.environ.get("PYTHONPATH")])
        )
    if device is not None:
        env["CUDA_VISIBLE_DEVICES"] = visible_as(device)
    return env


def visible_as(device: str) -> str:
    """CUDA_VISIBLE_DEVICES for a process that is to see this device only.

    Args:
        device: "cpu" or "cuda:N" of the GPUs that are visible here.

    Raises:
        ValueError: there is no such device.
    """
    kind, _, index = device.partition(":")
    if device == "cpu":
        return ""
    if kind != "cuda" or not index.isdecimal():
        raise ValueError(f"--devices: expected cpu or cuda:N, found {device!r}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return index
    names = [name for name in visible.split(",") if name]
    if int(index) >= len(names):
        raise ValueError(
            f"--devices: expected one of the {len(names)} devices of CUDA_VISIBLE_DEVICES="
            f"{visible!r}, found {device!r}"
        )
    return names[int(index)]


def run_all(
    runs: Iterable[Run],
    ended: Callable[[Run, str], None],
    watch: Callable[[Mapping[Run, Watch]], None] = lambda watches: None,
    devices: Sequence[str | None] = (None,),
) -> None:
    """Do all runs that are not finished. They end with this call, unless SIGKILL ends it.

    Args:
        ended: is called with each run that has ended and with what went wrong, "" if all is well.
        watch: is called twice a second with the present runs, to show their progress.
        devices: one for each run at a time; a run has its device to itself unless the device is
            named more than once. See `Run.start`.
    """
    waiting = deque(run for run in runs if not run.finished)
    free = deque(devices)
    working: dict[Run, tuple[subprocess.Popen, str | None]] = {}
    watches: dict[Run, Watch] = {}

    def has_ended(run: Run, options: int = 0) -> bool:
        process, _ = working[run]
        pid, status, usage = os.wait4(process.pid, options)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            run.note_usage(usage.ru_maxrss / 1024, len(devices))
        return bool(pid)

    polled = 0.0
    try:
        while waiting or working:
            while waiting and free:
                run, device = waiting.popleft(), free.popleft()
                try:
                    watches[run] = Watch(run.folder, OUTPUT, run.max_iter, run.trains)
                    working[run] = run.start(device, len(devices)), device
                except RuntimeError as error:
                    free.append(device)
                    del watches[run]
                    ended(run, str(error))
            time.sleep(0.1)
            just_ended = [run for run in working if has_ended(run, os.WNOHANG)]
            if watches and (just_ended or time.monotonic() - polled >= 0.5):
                polled = time.monotonic()
                for item in watches.values():
                    item.poll()
                watch(watches)
            for run in just_ended:
                process, device = working.pop(run)
                del watches[run]
                free.append(device)
                ended(run, run.problem(process.returncode))
    finally:
        alive = [run for run, (process, _) in working.items() if process.returncode is None]
        for run in alive:
            # Popen.terminate() would also collect a process that has ended just now, and its memory
            # would not be measured.
            os.kill(working[run][0].pid, signal.SIGTERM)
        for run in alive:
            has_ended(run)


@contextlib.contextmanager
def end_with_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `run_all` ends its runs.

    A signal that is ignored stays ignored: nohup ignores SIGHUP. Outside the main thread, where
    Python forbids signal handlers, this does nothing.
    """

    def leave(number: int, _) -> None:
        sys.exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
