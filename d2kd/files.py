"""Write files so that a reader sees either the old content or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from socket import gethostname
from typing import Any

__all__ = ["sha256_of_file", "write_file", "write_json"]


def write_file(path: str | os.PathLike, content: str | bytes | memoryview) -> None:
    """Replace a file's content in one step.

    The content goes to a temporary file in the same folder, which is then renamed. A process that
    is killed in between leaves the old file as it was. The temporary name contains host and
    process id, so that two processes that write the same file do not mix their content.

    Args:
        path: the file; its folder must exist.
        content: text is written as UTF-8.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{gethostname()}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            # Without this, a power cut after the rename can leave an empty file of the final name.
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


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
