"""Write files so that a reader sees either the old content or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Any, BinaryIO

__all__ = [
    "open_to_replace",
    "remove_partial_files",
    "sha256_of_file",
    "write_file",
    "write_json",
]


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
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{gethostname()}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as f:
            yield f
            f.flush()
            # Without this, a power cut after the rename can leave an empty file of the final name.
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
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
