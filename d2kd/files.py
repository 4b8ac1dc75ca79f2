"""Write files so that a reader sees either the old content or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Any, BinaryIO

__all__ = [
    "DiskFullError",
    "check_new_folder",
    "file_in_the_way",
    "open_to_replace",
    "remove_partial_files",
    "sha256_of_file",
    "write_file",
    "write_json",
]


# The disk, the user's quota, or the largest file that the system allows.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """A file could not be written because there was no space left for it."""


def file_in_the_way(path: str | bytes | os.PathLike) -> str:
    """The part of a path that is a file, so that no folder can be made there; "" if none is."""
    name = os.fsdecode(path)
    while name and not os.path.lexists(name):
        name = os.path.dirname(name)
    return name if name and not os.path.isdir(name) else ""


def check_new_folder(field: str, path: str | os.PathLike) -> None:
    """Refuse a folder for results that has files already, of which some would stay.

    Args:
        field: name of the option, for the message.
        path: of a folder that is new or empty.

    Raises:
        FileExistsError: it has files, or is a file.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{field}: expected a new or an empty folder, found files at '{folder}'. Give another "
            f"name, or remove them."
        )


class _RawFile(io.FileIO):
    """Remembers why a write failed. Libraries such as PyTorch report other errors instead."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as e:
            self.failure = e
            raise


@contextlib.contextmanager
def open_to_replace(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` in one step when the `with` block ends.

    Use it for content that is too large for memory; `write_file` writes content that you have. If
    the block raises, the old file stays and the temporary one is removed. A process that is killed
    in between leaves the old file, and a temporary file that `remove_partial_files` finds. The
    temporary name contains host and process id, so that two processes that write the same file do
    not mix their content.

    Args:
        path: the file; its folder must exist.

    Yields:
        the temporary file, opened in binary mode; `.name` is its path, in the folder of `path`.

    Raises:
        DiskFullError: there is no space left. The old file stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{gethostname()}.{os.getpid()}.tmp")
    raw = None
    try:
        raw = _RawFile(partial, "w")
        with io.BufferedWriter(raw) as f:
            yield f
            f.flush()
            # Without this, a power cut after the rename can leave an empty file of the final name.
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        failure = e if isinstance(e, OSError) else raw and raw.failure
        if isinstance(failure, OSError) and failure.errno in _FULL:
            free = shutil.disk_usage(path.parent).free / 1e6
            raise DiskFullError(
                f"{path}: expected space to write it, found: {failure.strerror} ({free:.0f} MB "
                f"free). No part of it is left, and an older file of this name stays. Make space, "
                f"then start again."
            ) from failure
        raise


def write_file(path: str | os.PathLike, content: str | bytes | memoryview) -> None:
    """Replace a file's content in one step; see `open_to_replace`.

    Args:
        path: the file; its folder must exist.
        content: text is written as UTF-8.
    """
    with open_to_replace(path) as f:
        f.write(content.encode() if isinstance(content, str) else content)


def remove_partial_files(path: str | os.PathLike) -> None:
    """Remove temporary files of `path` that killed processes left behind.

    Call it where no other process writes `path`: its temporary file would be removed too.
    """
    path = Path(path)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON with `write_file`.

    Raises:
        ValueError: the content has a NaN or an infinite number, which JSON does not know.
    """
    write_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256_of_file(path: str | os.PathLike) -> str:
    """Hexadecimal sha256 of a file. The file is read in blocks, so it may be of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
