"""The demo's trainings: what is finished stays, unless what it was made from has changed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from d2kd.files import write_json
from d2kd.progress import ProgressLine, bar, format_time
from d2kd.tools.paths import configs_folder
from d2kd.tools.runs import Run, is_running, run_all
from d2kd.tools.watch import Watch

__all__ = [
    "CONFIGS",
    "SHIPPED",
    "START",
    "TITLES",
    "Failed",
    "config_path",
    "short_digest",
    "train_all",
]

CONFIGS = {
    "teacher": "configs/demo/teacher.py",
    "alone": "configs/demo/student_continued.py",
    "distilled": "configs/demo/distill_continued.py",
}
SHIPPED = "configs/demo/teacher.pth"
START = "configs/demo/student.pth"  # both students start from it; it has trained alone
TITLES = {
    "teacher": "teacher",
    "start": "student before",
    "alone": "student alone",
    "distilled": "student distilled",
}


class Failed(RuntimeError):
    """A training failed, or the teacher is missing. The message is for the user."""


def config_path(name: str) -> str:
    """Path of a file that comes with d2kd, such as "configs/demo/teacher.py"."""
    return str(configs_folder() / name.removeprefix("configs/"))


def short_digest(content: bytes) -> str:
    """The first 16 digits of the sha256."""
    return hashlib.sha256(content).hexdigest()[:16]


def fingerprint(cfg) -> str:
    """Digest of all that a LazyConfig says. It does not depend on where d2kd lies."""
    from detectron2.config import LazyConfig

    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(cfg, f"{folder}/config.yaml")
        text = Path(folder, "config.yaml").read_text()
    return short_digest(text.replace(f"{configs_folder()}{os.sep}", "configs/").encode())


def prepare(folder: Path, inputs: Mapping[str, str], fresh: bool) -> bool:
    """Make a run's folder. If it has a run that was made from other inputs, put that run aside.

    Args:
        inputs: name -> digest of what the run is made from.
        fresh: put a run aside in any case.

    Returns:
        whether the run is finished.

    Raises:
        Failed: another process trains in the folder.
    """
    record = folder / "inputs.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if folder.exists() and any(folder.iterdir()) and (fresh or known != inputs):
        if is_running(folder):
            raise Failed(f"{TITLES[folder.name]}: another process trains in {folder}")
        changed = sorted(k for k in {*known, *inputs} if known.get(k) != inputs.get(k))
        why = "--fresh" if fresh else f"made with another {' and '.join(changed)}"
        note = ""
        if any(folder.glob("*.pth")):
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            note = f"; the previous run is now in {old}"
        else:  # Nothing was trained. An older run that was put aside is worth more.
            shutil.rmtree(folder)
        print(f"{TITLES[folder.name]}: starting anew ({why}){note}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, inputs)
    return (folder / "model_final.pth").exists()


def show(line: ProgressLine, run: Run, watch: Watch) -> None:
    """Show how a run gets on, and the warnings and errors that it prints."""
    for warning in watch.warnings:
        line.note(warning)
    total = run.max_iter or 1
    line.show(bar(run.title, watch.done, total, watch.words()), watch.done / total)


def train(folder: Path, config: str, overrides: list[str], inputs: dict, fresh: bool) -> None:
    """Train a run unless it is finished.

    Raises:
        Failed: the training failed.
    """
    from d2kd.config import load_config

    cfg = load_config(config_path(config), overrides)
    cfg.train.output_dir = ""
    inputs = {"config": fingerprint(cfg), **inputs}
    title, total = TITLES[folder.name], cfg.train.max_iter
    if prepare(folder, inputs, fresh):
        print(f"{title:<18} trained already, {total} iterations ({folder}; --fresh trains again)")
        return
    run = Run(
        title=title,
        folder=folder,
        config=config_path(config),
        overrides=tuple(overrides),
        max_iter=total,
    )
    line, latest = ProgressLine(), [Watch(folder, run.output.name, total)]

    def watch(watches: Mapping[Run, Watch]) -> None:
        latest[0] = watches[run]
        show(line, run, watches[run])

    def ended(_: Run, problem: str) -> None:
        if problem:
            line.close()
            raise Failed(f"\n{title}: training failed: {problem}")
        seen = latest[0]
        loss = "" if seen.loss is None else f"loss {seen.loss:.3f}  "
        ap = "" if seen.ap is None else f"AP {seen.ap:.1f}  "
        took = f"took {format_time(seen.rate.clock() - seen.rate.started)}"
        line.close(bar(title, total, total, f"{loss}{ap}{took}"))

    run_all([run], ended, watch)


def get_teacher(folder: Path, args: argparse.Namespace, overrides: list[str], data: str) -> Path:
    """Train the teacher, or copy the one that comes with d2kd.

    Returns:
        its weights.

    Raises:
        Failed: there is no teacher.
    """
    weights = folder / "model_final.pth"
    if args.train_teacher:
        train(folder, CONFIGS["teacher"], overrides, {"data": data}, args.fresh)
        return weights
    shipped = Path(config_path(SHIPPED))
    if not shipped.exists():
        raise Failed(
            f"teacher: expected its checkpoint at {shipped}, found no file.\n"
            f"  run  d2kd demo --train-teacher"
        )
    if not prepare(folder, {"teacher": short_digest(shipped.read_bytes())}, fresh=False):
        shutil.copyfile(shipped, folder / ".model_final.tmp")
        os.replace(folder / ".model_final.tmp", weights)
    print(f"{TITLES['teacher']:<18} {SHIPPED}, trained by this project's {CONFIGS['teacher']}")
    return weights


def train_all(args: argparse.Namespace, output: Path, data: str) -> None:
    """Train the three detectors, one after the other.

    Args:
        args: of the command line.
        output: folder of the runs.
        data: digest of the data.
    """
    from d2kd.config import load_config

    overrides = [] if args.seed is None else [f"train.seed={args.seed}"]
    overrides += [] if args.max_iter is None else [f"train.max_iter={args.max_iter}"]
    weights = get_teacher(output / "teacher", args, overrides, data)
    start = short_digest(Path(config_path(START)).read_bytes())
    inputs = {"data": data, "start": start}
    train(output / "alone", CONFIGS["alone"], overrides, inputs, args.fresh)
    if args.train_teacher:
        quoted = str(weights).replace('"', '\\"')
        overrides = [*overrides, f'model.teacher.weights="{quoted}"']
    model = fingerprint(load_config(config_path(CONFIGS["teacher"])).model)
    teacher = short_digest(f"{model} {short_digest(weights.read_bytes())}".encode())
    inputs = {**inputs, "teacher": teacher}
    train(output / "distilled", CONFIGS["distilled"], overrides, inputs, args.fresh)
