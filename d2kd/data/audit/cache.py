"""A cache of what an audit has read, so that the next run need not read it again.

The files are in $D2KD_CACHE, or in $XDG_CACHE_HOME/d2kd, or in ~/.cache/d2kd. They can be deleted
at any time. Where the folder cannot be written, nothing is cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ...files import write_file

__all__ = ["folder", "load", "place", "stamp", "store"]

FORMAT = 3  # of the entries, and of the rules that made them; a new one makes old files unused


def folder() -> Path:
    """The folder of the cache."""
    given = os.environ.get("D2KD_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(given) if given else Path(base, "d2kd")


def place(kind: str, key: str, suffix: str = ".json") -> Path:
    """Path of the file for one key."""
    digest = hashlib.sha256(f"{FORMAT} {kind} {key}".encode(errors="surrogateescape")).hexdigest()
    return folder() / f"{kind}-{digest[:24]}{suffix}"


def stamp(path: str) -> list[int]:
    """Size and time of change of a file: if both are the same, so is the content."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]


def load(kind: str, key: str) -> Any:
    """What was stored; None if there is nothing, or nothing that can be read."""
    try:
        entry = json.loads(place(kind, key).read_bytes())
        return entry["content"] if entry["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(kind: str, key: str, content: Any) -> None:
    """Store JSON. A cache that cannot be written is no error."""
    path = place(kind, key)
    with contextlib.suppress(OSError, UnicodeEncodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"key": key, "content": content}))
