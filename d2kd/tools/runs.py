"""Trainings by train_net.py, a folder each: started, watched, measured. A part of compare.py.

It must not import torch. Linux counts the memory of the process that starts another one as that
one's too, so that a large one here would hide how much a training takes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2kd.files import write_file

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TASKS = {"bbox": "", "segm": "mask "}  # COCOEvaluator's name -> before the metric in tables
TAIL = 15  # lines of a failed run's output that are shown


@dataclass(frozen=True)
class Run:
    """One training with one seed.

    Its folder holds what train_net.py writes, its output (output.txt), its settings (run.json) and
    what it used (usage.json).

    Args:
        name: of the entry that it belongs to.
        config: path from `root`.
        overrides: of fields of the config, as train_net.py takes them; "{seed}" in them stands for
            the seed.
        root: the folder to train in, that relative paths of the config begin at.
    """

    name: str
    config: str
    overrides: tuple[str, ...]
    seed: int
    folder: Path
    root: Path

    @property
    def settings(self) -> list[str]:
        overrides = [text.replace("{seed}", str(self.seed)) for text in self.overrides]
        return [self.config, *overrides, f"train.seed={self.seed}"]

    def result(self) -> dict[str, float] | None:
        """What the run gives, if it has finished.

        Returns:
            AP, AP50, ... of boxes and "mask AP", ... of masks, in percent, where COCOEvaluator gave
            them; and where known "s/iter" (median over the log's lines but the first, which holds
            the warm-up), "data s" (the part of it that waited for data), "GPU MiB" (PyTorch's peak
            of allocated memory), "RSS MiB" (peak of the run's largest process) and "at a time"
            (the most runs that trained beside each other).
        """
        lines = _json_lines(self.folder / "metrics.json")
        last = lines[-1] if lines else {}
        if "bbox/AP" not in last or not (self.folder / "model_final.pth").exists():
            return None
        result = {
            f"{prefix}{m}": float(last[f"{task}/{m}"])
            for task, prefix in TASKS.items()
            for m in METRICS
            if f"{task}/{m}" in last
        }
        for prefix in TASKS.values():
            if math.isnan(result.get(f"{prefix}AP", 0.0)):  # Detectron2's word for no detections
                result.update({f"{prefix}{m}": 0.0 for m in METRICS[:3]})
        steps = [line for line in lines if "time" in line]
        for title, key in (("s/iter", "time"), ("data s", "data_time")):
            values = [line[key] for line in steps[1:] or steps if key in line]
            if values:
                result[title] = statistics.median(values)
        log = self.folder / "log.txt"
        peaks = re.findall(
            r"max_mem: (\d+)M", log.read_text(errors="replace") if log.exists() else ""
        )
        if peaks:
            result["GPU MiB"] = float(max(map(int, peaks)))
        return {**result, **self._usage()}

    @property
    def sources(self) -> str:
        """Digest of the config's file and of those that it imports by relative paths."""
        return digest_sources(self.root / self.config)

    def check(self) -> None:
        """
        Raises:
            ValueError: the folder holds a run of another config or with other options, or one whose
                config has changed since.
        """
        note = self.folder / "run.json"
        if not note.exists():
            return
        found = json.loads(note.read_text())
        found = found if isinstance(found, dict) else dict(settings=found)  # written by 0.1's first
        settings, way_out = found["settings"], "Choose another --output or name, or delete it."
        if settings != self.settings:
            raise ValueError(
                f"{self.folder}: expected a run of {shlex.join(self.settings)}, found one of "
                f"{shlex.join(settings)}. {way_out}"
            )
        if found.get("sources", self.sources) != self.sources:
            raise ValueError(
                f"{self.folder}: expected a run of {self.config} as it is now, found one from "
                f"before it, or a config that it imports, was changed. {way_out}"
            )

    def start(self, script: Path, device: str, threads: int) -> subprocess.Popen:
        """Begin the training, or go on from its last checkpoint.

        Args:
            script: train_net.py.
            device: "cpu" or "cuda:N" of the GPUs that are visible here.
            threads: CPU threads for PyTorch.

        Raises:
            RuntimeError: another process trains in this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "output.txt", "ab") as log:
            try:
                # The training inherits the open file, and with it the lock, until it ends.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(f"another process trains in {self.folder}") from None
            note = dict(settings=self.settings, sources=self.sources)
            write_file(self.folder / "run.json", json.dumps(note))
            quoted = str(self.folder.resolve()).replace('"', '\\"')
            command = [
                sys.executable,
                str(script.resolve()),
                "--resume",
                "--config-file",
                self.config,
            ]
            command += [f"train.device={device.partition(':')[0]}"]  # an override may say otherwise
            command += [*self.settings[1:], f'train.output_dir="{quoted}"']
            env = {
                **os.environ,
                "CUDA_VISIBLE_DEVICES": visible_as(device),
                "OMP_NUM_THREADS": str(threads),
            }
            return subprocess.Popen(
                command, cwd=self.root, stdout=log, stderr=subprocess.STDOUT, env=env
            )

    def note_usage(self, rss: float, at_a_time: int) -> None:
        """Remember the most memory (MiB) and company that the run had, over all its starts."""
        now = {"RSS MiB": rss, "at a time": at_a_time}
        before = self._usage()
        most = {key: max(value, before.get(key, 0)) for key, value in now.items()}
        write_file(self.folder / "usage.json", json.dumps(most))

    def _usage(self) -> dict[str, float]:
        path = self.folder / "usage.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def problem(self, code: int) -> str:
        """Why a training that ended with this exit status is none, "" if all is well."""
        if code == 0 and self.result() is not None:
            return ""
        path = self.folder / "output.txt"
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-TAIL:])
        why = f"exit status {code}" if code else "it ended without bbox/AP in metrics.json"
        return f"{why}, see {path}, which ends in\n{tail}"


def train_all(
    runs: Iterable[Run],
    script: Path,
    devices: Sequence[str],
    threads: int,
    ended: Callable[[Run, str], None],
) -> None:
    """Train what is not finished. Trainings end with this call, unless it is killed by SIGKILL.

    Args:
        script, threads: see `Run.start`.
        devices: one for each run at a time; a run has its device to itself unless it is named more
            than once.
        ended: is called with each run that has ended and with what went wrong, "" if nothing did.
    """
    waiting = deque(run for run in runs if run.result() is None)
    free = deque(devices)
    training: dict[Run, tuple[subprocess.Popen, str]] = {}

    def has_ended(run: Run, options: int = 0) -> bool:
        process, _ = training[run]
        pid, status, usage = os.wait4(process.pid, options)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            run.note_usage(usage.ru_maxrss / 1024, len(devices))
        return bool(pid)

    try:
        while waiting or training:
            while waiting and free:
                run, device = waiting.popleft(), free.popleft()
                try:
                    training[run] = run.start(script, device, threads), device
                except RuntimeError as error:
                    free.append(device)
                    ended(run, str(error))
            time.sleep(0.1)
            for run in [run for run in training if has_ended(run, os.WNOHANG)]:
                process, device = training.pop(run)
                free.append(device)
                ended(run, run.problem(process.returncode))
    finally:
        alive = [run for run, (process, _) in training.items() if process.returncode is None]
        for run in alive:
            # Not terminate(), which would take what it used from one that has ended just now.
            os.kill(training[run][0].pid, signal.SIGTERM)
        for run in alive:
            has_ended(run)


def visible_as(device: str) -> str:
    """CUDA_VISIBLE_DEVICES for a process that is to see this device only.

    Raises:
        ValueError: there is no such device.
    """
    kind, _, index = device.partition(":")
    if device == "cpu":
        return ""
    if kind != "cuda" or not index.isdecimal():
        raise ValueError(f"--devices: expected cpu or cuda:N, found {device!r}")
    ours = os.environ.get("CUDA_VISIBLE_DEVICES")
    if ours is None:
        return index
    names = [name for name in ours.split(",") if name]
    if int(index) >= len(names):
        raise ValueError(
            f"--devices: found {device!r}, but CUDA_VISIBLE_DEVICES={ours!r} shows {len(names)}"
        )
    return names[int(index)]


def digest_sources(config: Path) -> str:
    """sha256 over a config and what it imports by relative paths, and these, and so on."""
    found: dict[Path, bytes] = {}
    waiting = [config.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found[path] = path.read_bytes()
        for dots, name in re.findall(rb"(?m)^\s*from (\.+)([\w.]+) import", found[path]):
            folder = path.parents[len(dots) - 1]
            waiting.append(folder.joinpath(*name.decode().split(".")).with_suffix(".py"))
    contents = (hashlib.sha256(found[path]).digest() for path in sorted(found))
    return hashlib.sha256(b"".join(contents)).hexdigest()


def _json_lines(path: Path) -> list[dict]:
    """What is whole of a file to which a killed process may have added half a line."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [line for line in found if isinstance(line, dict)]
