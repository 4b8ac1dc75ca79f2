"""Raw predictions on disk, in units that are there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import write_file
from .records import Found

__all__ = ["Claims", "RawCache", "Unit"]


class Unit(NamedTuple):
    """What one teacher found in the images of one unit.

    Attributes:
        sizes: image id -> height and width, of the images that could be read.
        found: image id -> predictions, of the same images in the same order.
        rejected: image id -> why the image could not be read.
    """

    sizes: dict[int, tuple[int, int]]
    found: dict[int, Found]
    rejected: dict[int, str]


class RawCache:
    """One teacher's raw predictions, in the folder <root>/<key>.

    A unit is a file unit_00000.npz (NumPy's format, uncompressed: exact, fast, and the same bytes
    for the same content, because NumPy dates the members of the archive at 1980) and a marker
    unit_00000.json with its counts and sha256. Both are written under another name and renamed,
    the marker last. A unit counts as done when its marker is there and agrees with its file.

    Args:
        root: folder of this teacher's caches, made where it is missing.
        settings: everything that alters raw predictions, for JSON. Another setting is another key
            and so another folder.
        record: what is noted in each marker but is not in the key, such as versions of libraries.

    Raises:
        PermissionError: the folder cannot be written.
        ValueError: the folder was made with other settings.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        settings: Mapping[str, Any],
        record: Mapping[str, Any] | None = None,
    ):
        text = json.dumps(settings, sort_keys=True, indent=1, allow_nan=False)
        self.settings = json.loads(text)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = Path(root) / self.key
        self.record = dict(record or {})
        file = self.folder / "settings.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                write_file(file, text.encode())
            found = file.read_text()
        except OSError as e:
            raise PermissionError(
                f"raw cache: expected a folder that can be written, found {self.folder} ({e}). "
                f"Set labels.output."
            ) from e
        if found != text:
            raise ValueError(
                f"{file}: expected the settings that the folder is named after, found others. "
                f"Remove {self.folder}, or set labels.output."
            )

    def claims(self) -> Claims:
        """See `Claims`."""
        return Claims(self.folder / "claims")

    def marked(self, unit: int) -> bool:
        """Whether a unit has a marker; quicker than `done`, which looks at the unit itself."""
        return self._marker(unit).exists()

    def done(self, unit: int) -> bool:
        """Whether a unit is there as it was written: not missing, cut off or altered.

        Raises:
            ValueError: the unit was made with other settings.
        """
        return self._checked(unit) is not None

    def missing(self, count: int) -> list[int]:
        """Which of the units 0 to count - 1 are not done."""
        return [unit for unit in range(count) if not self.done(unit)]

    def write(self, unit: int, content: Unit) -> None:
        """Store a unit. One that is there already is replaced."""
        sizes, found, rejected = content
        in_order = [found[image_id] for image_id in sizes]
        none = Found(np.empty((0, 4)), np.empty(0), np.empty(0))
        arrays = dict(
            image_ids=np.array(list(sizes), np.int64),
            sizes=np.array(list(sizes.values()), np.int32).reshape(-1, 2),
            counts=np.array([len(f.scores) for f in in_order], np.int64),
            boxes=np.concatenate([none.boxes, *(f.boxes for f in in_order)]).astype(np.float32),
            scores=np.concatenate([none.scores, *(f.scores for f in in_order)]).astype(np.float32),
            classes=np.concatenate([none.classes, *(f.classes for f in in_order)]).astype(np.int32),
            rejected_ids=np.array(list(rejected), np.int64),
            reasons=np.array(list(rejected.values()), np.str_),
        )
        file = io.BytesIO()
        np.savez(file, **arrays)
        marker = dict(
            key=self.key,
            images=len(sizes),
            boxes=len(arrays["scores"]),
            rejected=len(rejected),
            sha256=hashlib.sha256(file.getbuffer()).hexdigest(),
            record=self.record,
        )
        self._marker(unit).unlink(missing_ok=True)  # of a unit that is done again
        for partial in self.folder.glob(f".{self._file(unit).stem}.*"):
            partial.unlink(missing_ok=True)  # left by a process that was killed
        write_file(self._file(unit), file.getbuffer())
        write_file(self._marker(unit), json.dumps(marker, sort_keys=True, indent=1).encode())

    def read(self, unit: int) -> Unit:
        """A unit that is done.

        Raises:
            ValueError: it is not done, or was made with other settings.
        """
        content = self._checked(unit)
        if content is None:
            raise ValueError(
                f"{self._file(unit)}: expected a whole unit with its marker, found it missing, "
                f"cut off or altered. Label again: only such units are done again."
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ids = arrays["image_ids"].tolist()
        sizes = {i: (h, w) for i, (h, w) in zip(ids, arrays["sizes"].tolist(), strict=True)}
        ends = arrays["counts"].cumsum()[:-1]
        classes = arrays["classes"].astype(np.int64)
        parts = [np.split(x, ends) for x in (arrays["boxes"], arrays["scores"], classes)]
        # Of no images np.split makes one empty part.
        found = {i: Found(*x) for i, *x in zip(ids, *parts, strict=False)}
        reasons = zip(arrays["rejected_ids"].tolist(), arrays["reasons"].tolist(), strict=True)
        return Unit(sizes, found, dict(reasons))

    def counts(self, unit: int) -> dict[str, int]:
        """images, boxes and rejected of a unit that has a marker, without reading the unit."""
        marker = json.loads(self._marker(unit).read_text())
        return {name: marker[name] for name in ("images", "boxes", "rejected")}

    def _file(self, unit: int) -> Path:
        return self.folder / f"unit_{unit:05d}.npz"

    def _marker(self, unit: int) -> Path:
        return self.folder / f"unit_{unit:05d}.json"

    def _checked(self, unit: int) -> bytes | None:
        try:
            marker = json.loads(self._marker(unit).read_text())
            content = self._file(unit).read_bytes()
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if marker["key"] != self.key:
            raise ValueError(
                f"{self._marker(unit)}: expected a unit of key {self.key}, found one of "
                f"{marker['key']}. Units of different settings must not be mixed: remove it."
            )
        return content if hashlib.sha256(content).hexdigest() == marker["sha256"] else None


class Claims:
    """Which process works on which unit.

    A claim is a lock on one byte of a file. The kernel takes it back when the process ends, however
    it ends, so that nothing is left to clean up after a kill, and any process may go on with the
    unit. Processes need not know of one another, nor how many there are.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = open(path, "ab")  # noqa: SIM115, closed by __exit__

    def take(self, unit: int) -> bool:
        """Whether the unit is now this process's; False where another one has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, unit)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks: two may then do the same unit, with one
            return True  # result, and the order in which they try units makes that rare
        return True

    def give_back(self, unit: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, unit)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
