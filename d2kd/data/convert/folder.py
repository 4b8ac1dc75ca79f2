"""Write a dataset's folder in the layout of `d2kd.data.folders`, complete or not at all."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from pathlib import Path
from socket import gethostname

from ...files import write_file
from .coco import Dataset

__all__ = ["write_dataset"]


def write_dataset(output: str | Path, dataset: Dataset, replace: bool = False) -> int | None:
    """Write annotations/<split>.json and the images, <split>/...

    Images are hard links where the file system can, and copies otherwise. The folder is made under
    a temporary name next to its place and then renamed, so that it is complete or absent. A process
    that is killed may leave the hidden folder `.<name>.<host>.<pid>.tmp`, which can be deleted.

    Args:
        output: the folder.
        dataset: what to write.
        replace: remove a folder that has another dataset. It must have nothing but annotations and
            images of its splits.

    Returns:
        the number of images that were copied, the others being hard links; None if the folder has
        this dataset already.

    Raises:
        FileExistsError: the folder has something else and may not be replaced, or another process
            made it in the meantime.
        ValueError: an image to convert lies in the folder.
    """
    output = Path(os.path.realpath(os.path.expanduser(output)))  # the place that a link points to
    exists = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    if exists:
        if _has(output, dataset):
            return None
        if not replace:
            raise FileExistsError(_something_else(output))
        _check_replaceable(output)
    for files in dataset.files.values():
        for source, _ in files:
            if Path(os.path.realpath(source)).is_relative_to(output):
                raise ValueError(
                    f"{output}: expected a folder without originals, found {source} in it. Choose "
                    f"another --output."
                )
    output.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{gethostname()}.{os.getpid()}"
    temporary = output.with_name(f".{output.name}.{mark}.tmp")
    old = output.with_name(f".{output.name}.{mark}.old")
    try:
        copied = _fill(temporary, dataset)
        if exists:
            os.rename(output, old)
        try:
            os.rename(temporary, output)
        except OSError as e:
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process has made the folder
                shutil.rmtree(old, ignore_errors=True)
                if not _has(output, dataset):
                    raise FileExistsError(_something_else(output)) from e
                shutil.rmtree(temporary)
                return None
            if exists:
                os.rename(old, output)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if exists:
        shutil.rmtree(old)
    return copied


def _something_else(output: Path) -> str:
    return (
        f"{output}: expected no folder, or this dataset, found something else. Choose another "
        f"--output, or give --replace to remove what is there."
    )


def _fill(folder: Path, dataset: Dataset) -> int:
    """Write a dataset into a new folder.

    Returns:
        the number of images that are copies.
    """
    (folder / "annotations").mkdir(parents=True)
    copied = 0
    for split, content in dataset.splits.items():
        write_file(folder / "annotations" / f"{split}.json", json.dumps(content, allow_nan=False))
        for source, name in dataset.files[split]:
            target = folder / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(os.path.realpath(source), target)
            except OSError:  # another file system, or one without hard links
                shutil.copy2(source, target)
                copied += 1
    return copied


def _has(folder: Path, dataset: Dataset) -> bool:
    """Whether a folder has this dataset. It may have unlabeled splits besides."""
    tables = {file.stem: file for file in folder.glob("annotations/*.json")}
    if tables.keys() != dataset.splits.keys():
        return False
    for split, file in tables.items():
        try:
            same = json.loads(file.read_text(encoding="utf-8")) == dataset.splits[split]
        except ValueError:  # not JSON
            return False
        if not same:
            return False
        for source, name in dataset.files[split]:
            image = folder / split / name
            if not image.is_file() or not _same_file(source, image):
                return False
    return True


def _same_file(a: Path, b: Path) -> bool:
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)


def _check_replaceable(folder: Path) -> None:
    """Refuse to remove what is not a dataset in this layout.

    Raises:
        FileExistsError: there is another file or folder.
    """
    splits = {file.stem for file in folder.glob("annotations/*.json")}
    others = [p for p in folder.glob("annotations/*") if p.suffix != ".json"]
    if folder.is_dir():
        others += [p for p in folder.iterdir() if p.name not in splits | {"annotations"}]
    if not splits or others:
        raise FileExistsError(
            f"{folder}: --replace expected annotations/*.json and the folders of their splits, "
            f"found {others[0].name if others else 'no annotations'}. Move it away, or choose "
            f"another --output."
        )
