"""Let one run at a time write to a folder, and keep the result of the run before it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname

from .files import file_in_the_way

__all__ = ["check_run_folder", "drop_kept_weights", "keep_finished_run", "lock_run_folder"]

logger = logging.getLogger(__name__)

NAME = ".run_lock"


def check_run_folder(folder: str | os.PathLike, *, training: bool, resume: bool = False) -> None:
    """Check that a run may use a folder, before anything is written to it.

    Args:
        folder: `train.output_dir`. URLs are not looked at.
        training: whether the run trains, so that it writes checkpoints.
        resume: whether it is asked to continue the run in this folder.

    Raises:
        ValueError: the folder, or one above it, is a file; or the finished run that should resume
            has no `last_checkpoint`, so that it would begin from step 0 and replace its result.
    """
    if "://" in str(folder):
        return
    path = Path(folder)
    if place := file_in_the_way(path):
        raise ValueError(
            f"train.output_dir {folder}: expected a folder, or a path at which one can be made, "
            f"found that {place} is a file. Set another train.output_dir, or rename this file."
        )
    final, last = path / "model_final.pth", path / "last_checkpoint"
    if training and resume and final.exists() and not last.exists():
        raise ValueError(
            f"--resume: expected {last}, found none beside model_final.pth. The run would start "
            f"from the beginning and replace it.\n"
            f"To go on from it, run: echo {final.name} > {last}. For a new run, set another "
            f"train.output_dir, or delete this folder."
        )


def keep_finished_run(folder: str | os.PathLike) -> Path | None:
    """Give what a finished run left a second place, so that a new run replaces nothing.

    All checkpoints and `student*.pth` also become files of `previous_1`, `previous_2`, ... in the
    folder. They stay where they are until the new run has started, because it may start from them.
    The config and the metrics move there at once: Detectron2 would replace the config, and write
    the metrics of both runs into one curve.

    Args:
        folder: `train.output_dir` of a training that does not resume. URLs are not looked at.

    Returns:
        the new folder, or None if there is no `model_final.pth`.
    """
    path = Path(folder)
    if "://" in str(folder) or not (path / "model_final.pth").exists():
        return None
    kept = next(p for i in itertools.count(1) if not (p := path / f"previous_{i}").exists())
    half = Path(tempfile.mkdtemp(prefix=".previous_", dir=path))
    half.chmod(path.stat().st_mode)
    for weights in _weights(path):
        try:
            # A second name of the same file. Checkpoints are replaced, never written over.
            os.link(weights.resolve(), half / weights.name)
        except OSError:  # a file system without hard links
            shutil.copy2(weights, half / weights.name)
    os.rename(half, kept)
    for pattern in ("config.yaml*", "metrics.json", "events.out.tfevents.*"):
        for file in path.glob(pattern):
            os.rename(file, kept / file.name)
    logger.warning(
        "train.output_dir %s has a finished run, and this is a new one. The earlier "
        "weights, metrics and config.yaml are kept in %s. Delete that folder if you do not need "
        "it.",
        folder,
        kept.name,
    )
    return kept


def _weights(folder: Path) -> list[Path]:
    return sorted((*folder.glob("model_*.pth"), *folder.glob("student*.pth")))


def drop_kept_weights(folder: str | os.PathLike, kept: Path) -> None:
    """Remove the earlier run's weights where they would be taken for the new run's.

    Call it when the new run has loaded its weights.

    Args:
        folder: `train.output_dir`.
        kept: what `keep_finished_run` returned; the files are kept there.
    """
    for weights in _weights(kept):
        Path(folder, weights.name).unlink(missing_ok=True)
    Path(folder, "last_checkpoint").unlink(missing_ok=True)


@contextlib.contextmanager
def lock_run_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a run's folder for the length of a `with` block.

    The lock is one of the operating system. It ends with its process, however that ends, so the
    lock of a killed run is no obstacle. The file says who holds it or held it last. It stays in
    place: if it were removed, two runs could hold locks of two files of the same name.

    Args:
        folder: it is made if it is missing. URLs are not locked.

    Raises:
        ValueError: another process holds the lock; the message has its host and process id.
    """
    if "://" in str(folder):
        yield
        return
    path = Path(folder, NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock of POSIX belongs to the process. A data loader's worker that outlives its run by some
    # seconds does not hold it, as it would hold one by flock. NFS knows it, too.
    with open(path, "a+") as f:
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EAGAIN):
                f.seek(0)
                raise ValueError(
                    f"train.output_dir {folder}: expected a folder that no other run writes to, "
                    f"found one in use by {_owner(f.read())}. Choose another folder, or end that "
                    f"run."
                ) from None
            logger.warning("%s: this file system has no locks (%s)", folder, e.strerror)
        f.truncate(0)
        owner = {"host": gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
        f.write(json.dumps(owner))
        f.flush()
        yield


def _owner(content: str) -> str:
    try:
        owner = json.loads(content)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):  # the other run is just writing it
        return "another process"
