"""What configs say: how long they train and who teaches. Read in a process of its own.

The comparison itself must not import PyTorch, see `d2kd.tools.runs`, and a LazyConfig does.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d2kd.files import sha256_of_file
from d2kd.plain_errors import describe_error
from d2kd.tools.paths import find_config
from d2kd.tools.runs import environment

from .entries import Entry
from .run import EntryRun, digest_sources

__all__ = ["Description", "describe"]


class Description(NamedTuple):
    """What a config says.

    Args:
        max_iter: iterations of a training; None if that is unknown.
        teacher: a digest of the teacher and of the data that detectors are evaluated on, the same
            for all configs with this teacher; empty for a config without a teacher.
        problem: why the config could not be loaded with its overrides, or which file it lacks;
            empty if neither.
    """

    max_iter: int | None = None
    teacher: str = ""
    problem: str = ""


def describe(
    entries: Sequence[Entry], seed: int, runs: Sequence[EntryRun] = ()
) -> list[Description]:
    """Describe the configs of entries.

    A config that cannot be loaded gets a description with nothing but the problem.

    Args:
        seed: stands for "{seed}" in overrides.
        runs: of the entries, in the order in which they will be done. Their files must be there, or
            below the folder of an earlier run, which may make them.
    """
    asked = [
        [str(find_config(e.config)), [o.replace("{seed}", str(seed)) for o in e.overrides]]
        for e in entries
    ]
    names = [entry.name for entry in entries]
    planned = [
        [names.index(r.name), r.config, r.overrides, r.trains, r.resumes, str(r.folder)]
        for r in runs
    ]
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import answer; answer()"],
        input=json.dumps([asked, planned]),
        capture_output=True,
        text=True,
        env=environment(),
    )
    if done.returncode:
        return [Description()] * len(entries)
    return [Description(*values) for values in json.loads(done.stdout.splitlines()[-1])]


def answer() -> None:
    """The other process: read configs, overrides and runs as JSON, print the descriptions."""
    asked, planned = json.load(sys.stdin)
    found = [_describe(*item) for item in asked]
    coming: list[str] = []
    for i, config, overrides, trains, resumes, folder in planned:
        if not found[i].problem:
            problem = _missing_file(config, overrides, trains, resumes, coming)
            found[i] = found[i]._replace(problem=problem)
        coming.append(folder)
    print("\n" + json.dumps(found))  # the configs may have printed something without a line's end


def _describe(config: str, overrides: Sequence[str]) -> Description:
    from d2kd.config import load_config

    try:
        cfg = load_config(config, overrides)
        has_teacher = cfg.model.get("student") and cfg.model.get("teacher")
        return Description(int(cfg.train.max_iter), _identity(cfg) if has_teacher else "")
    except (Exception, SystemExit) as error:  # of any kind: a config is a program
        return Description(problem=_words(error))


def _missing_file(
    config: str, overrides: Sequence[str], trains: bool, resumes: bool, coming: Sequence[str]
) -> str:
    """What `check_files` says of a run; "" if its files are there."""
    from d2kd.config import check_files, load_config

    try:
        cfg = load_config(config, overrides)
        check_files(cfg, training=trains, initial_weights=not resumes, coming=coming)
    except (Exception, SystemExit) as error:
        return _words(error)
    return ""


def _words(error: BaseException) -> str:
    own = describe_error(error) is not None or isinstance(error, ValueError)
    return str(error) if own else f"{type(error).__name__}: {error}"


def _identity(cfg: Any) -> str:
    """Digest of a distiller's teacher, its weights and the data of the evaluation."""
    from d2kd.pseudo.fingerprint import plain

    teacher, parts = cfg.model.teacher, []
    model, weights = teacher.get("model"), str(teacher.get("weights"))
    if isinstance(model, str) and os.path.isfile(model):
        parts.append(digest_sources(Path(model)))
    if os.path.isfile(weights):
        parts.append(sha256_of_file(weights))
    settings = {k: v for k, v in cfg.dataloader.items() if k in ("test", "evaluator")}
    # By names: the repr of a function has its address, which is another one in each process.
    parts.append(json.dumps(plain([teacher, settings], depth=50), sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
