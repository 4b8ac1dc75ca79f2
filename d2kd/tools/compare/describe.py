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
from d2kd.tools.paths import find_config
from d2kd.tools.runs import environment

from .entries import Entry
from .run import digest_sources

__all__ = ["Description", "describe"]


class Description(NamedTuple):
    """What a config says.

    Args:
        max_iter: iterations of a training; None if that is unknown.
        teacher: a digest of the teacher and of the data that detectors are evaluated on, the same
            for all configs with this teacher; empty for a config without a teacher.
        problem: why the config could not be loaded with its overrides; empty if it could.
    """

    max_iter: int | None = None
    teacher: str = ""
    problem: str = ""


def describe(entries: Sequence[Entry], seed: int) -> list[Description]:
    """Describe the configs of entries.

    A config that cannot be loaded gets a description with nothing but the problem.

    Args:
        seed: stands for "{seed}" in overrides.
    """
    asked = [
        [str(find_config(e.config)), [o.replace("{seed}", str(seed)) for o in e.overrides]]
        for e in entries
    ]
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import answer; answer()"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment(),
    )
    if done.returncode:
        return [Description()] * len(entries)
    return [Description(*values) for values in json.loads(done.stdout.splitlines()[-1])]


def answer() -> None:
    """The other process: read configs and overrides as JSON, print their descriptions."""
    found = [_describe(*item) for item in json.load(sys.stdin)]
    print("\n" + json.dumps(found))  # the configs may have printed something without a line's end


def _describe(config: str, overrides: Sequence[str]) -> Description:
    from d2kd.config import load_config

    try:
        cfg = load_config(config, overrides)
        has_teacher = cfg.model.get("student") and cfg.model.get("teacher")
        return Description(int(cfg.train.max_iter), _identity(cfg) if has_teacher else "")
    except (Exception, SystemExit) as error:  # of any kind: a config is a program
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Description(problem=f"{kind}{error}")


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
