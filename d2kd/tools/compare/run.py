"""The runs of a comparison: a training for each entry and seed, or one evaluation of a teacher."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2kd.files import write_file
from d2kd.metrics import read_metrics
from d2kd.tools.paths import find_config
from d2kd.tools.runs import Run, is_running

from .entries import Entry
from .history import history_of

__all__ = ["METRICS", "TASKS", "EntryRun", "digest_sources", "make_runs"]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TASKS = {"bbox": "", "segm": "mask "}  # COCOEvaluator's name -> before the metric in tables


@dataclass(frozen=True, kw_only=True)
class EntryRun(Run):
    """A run of an entry.

    Args:
        entry: the row of the table that the run belongs to.
        seed: of the training; None for an evaluation.
        identity: for the evaluation of a distiller's teacher, a digest of the teacher and of the
            data it is evaluated on; otherwise empty.
    """

    entry: Entry
    seed: int | None = None
    identity: str = ""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def finished(self) -> bool:
        return self.result() is not None

    @property
    def lacks(self) -> str:
        where = "metrics.json" if self.trains else "its output"
        return f"without bbox/AP in {where}"

    @property
    def settings(self) -> list[str]:
        """What is run: the config as the user named it, and the overrides."""
        return [self.entry.config, *self.overrides]

    @property
    def sources(self) -> str:
        """Digest of the config's file and of the files that it imports by relative paths."""
        return digest_sources(Path(self.config))

    def result(self) -> dict[str, float] | None:
        """The figures of the run, or None if it has not finished.

        Returns:
            AP, AP50, ... of boxes and "mask AP", ... of masks, in percent, as far as COCOEvaluator
            gave them. For a training also, where known: "steps", "train min" (mean time of a step
            times the steps, see `history_of`), "s/iter" (median over the log's lines without the
            first, which has the warm-up), "data s" (the part of it that waited for data), "GPU MiB"
            (PyTorch's peak of allocated memory), "RSS MiB" (peak of the run's largest process) and
            "at a time" (the most runs that shared the machine).
        """
        if not self.trains:
            return self._evaluation()
        lines = read_metrics(self.folder)
        last = lines[-1] if lines else {}
        if "bbox/AP" not in last or not (self.folder / "model_final.pth").exists():
            return None
        result = _scores(last)
        history = history_of(lines)
        if history.steps:
            result["steps"] = history.steps
        if history.seconds is not None:
            result["train min"] = history.steps * history.seconds / 60
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
        return {**result, **self.usage()}

    def _evaluation(self) -> dict[str, float] | None:
        """The figures in the lines "copypaste: ..." that Detectron2 prints after an evaluation."""
        if not self.output.exists():
            return None
        found: dict[str, float] = {}
        lines = re.findall(r"copypaste: (.*)", self.output.read_text(errors="replace"))
        for task, names, values in zip(lines, lines[1:], lines[2:], strict=False):
            if task.startswith("Task: "):
                pairs = zip(names.split(","), values.split(","), strict=True)
                found.update({f"{task[6:].strip()}/{k.strip()}": float(v) for k, v in pairs})
        return _scores(found) if "bbox/AP" in found else None

    @property
    def has_begun(self) -> bool:
        """Whether a run works in the folder, or has left a checkpoint, metrics or figures in it."""
        left = any(self.folder.glob("*.pth")) or read_metrics(self.folder) or self._evaluation()
        return bool(left) or is_running(self.folder)

    def prepare(self) -> None:
        note = dict(settings=self.settings, sources=self.sources)
        note |= {"identity": self.identity} if self.identity else {}
        write_file(self.folder / "run.json", json.dumps(note))

    def check(self) -> None:
        """Find out whether the folder holds another run. One that never began does not count.

        Raises:
            ValueError: it holds a run of another config or with other options, or a run whose
                config has changed since.
        """
        path = self.folder / "run.json"
        if not path.exists() or not self.has_begun:
            return
        note = json.loads(path.read_text())
        note = note if isinstance(note, dict) else dict(settings=note)  # an early version's
        way_out = "Choose another --output or name, or delete it."
        if self.identity or "identity" in note:
            if note.get("identity", "") != self.identity:
                raise ValueError(
                    f"{self.folder}: expected an evaluation of the teacher of "
                    f"{self.entry.config}, found a run of {shlex.join(note['settings'])} with "
                    f"another teacher or on other data. {way_out}"
                )
            return
        if note["settings"] != self.settings:
            raise ValueError(
                f"{self.folder}: expected a run of {shlex.join(self.settings)}, found one of "
                f"{shlex.join(note['settings'])}. {way_out}"
            )
        if note.get("sources", self.sources) != self.sources:
            raise ValueError(
                f"{self.folder}: expected a run of {self.entry.config} as it is now, found one "
                f"from before it, or a config that it imports, was changed. {way_out}"
            )


def make_runs(
    entry: Entry, seeds: Sequence[int], output: Path, max_iter: int | None = None
) -> list[EntryRun]:
    """The runs of an entry: one for each seed, or one evaluation of a teacher with weights.

    Args:
        output: folder of the comparison.
        max_iter: iterations of a run, where known.
    """
    config = str(find_config(entry.config))
    folder = output / entry.folder
    if entry.has_weights:
        return [
            EntryRun(
                title=entry.name,
                folder=folder,
                config=config,
                overrides=entry.overrides,
                mode="--eval-only",
                entry=entry,
            )
        ]
    runs = []
    for seed in seeds:
        overrides = [text.replace("{seed}", str(seed)) for text in entry.overrides]
        runs.append(
            EntryRun(
                title=f"{entry.name}, seed {seed}",
                folder=folder / f"seed{seed}",
                config=config,
                overrides=(*overrides, f"train.seed={seed}"),
                max_iter=max_iter,
                entry=entry,
                seed=seed,
            )
        )
    return runs


def _scores(values: dict) -> dict[str, float]:
    """COCOEvaluator's figures with the names that the table has for them."""
    result = {
        f"{prefix}{m}": float(values[f"{task}/{m}"])
        for task, prefix in TASKS.items()
        for m in METRICS
        if f"{task}/{m}" in values
    }
    for prefix in TASKS.values():
        if math.isnan(result.get(f"{prefix}AP", 0.0)):  # Detectron2's word for no detections
            result.update({f"{prefix}{m}": 0.0 for m in METRICS[:3]})
    return result


def digest_sources(config: Path) -> str:
    """sha256 of a config, of the files that it imports by relative paths, and so on.

    Of yacs configs, these are the file that `load_student_config` reads, and its `_BASE_`.
    """
    contents: dict[Path, bytes] = {}
    waiting = [config.resolve()]
    while waiting:
        path = waiting.pop()
        if path in contents or not path.is_file():
            continue
        contents[path] = path.read_bytes()
        for dots, name in re.findall(rb"(?m)^\s*from (\.+)([\w.]+) import", contents[path]):
            folder = path.parents[len(dots) - 1]
            waiting.append(folder.joinpath(*name.decode().split(".")).with_suffix(".py"))
        for name in re.findall(rb"load_student_config\(\s*['\"]([^'\"]+)", contents[path]):
            waiting.append(Path(name.decode()).resolve())
        for name in re.findall(rb"(?m)^_BASE_\s*:\s*['\"]?([^'\"\s]+)", contents[path]):
            waiting.append((path.parent / name.decode()).resolve())
    digests = (hashlib.sha256(contents[path]).digest() for path in sorted(contents))
    return hashlib.sha256(b"".join(digests)).hexdigest()
