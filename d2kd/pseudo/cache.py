"""Store a teacher's raw predictions on disk, in units that are complete or absent.

Labeling can be interrupted at any time and continued by any number of processes, because a unit is
either done or not, and `Claims` say which process works on which unit.
"""

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

from ..files import remove_partial_files, write_file
from ..matching import Detections

__all__ = ["Claims", "RawCache", "Unit"]


class Unit(NamedTuple):
    """One teacher's predictions for the images of one unit.

    Attributes:
        sizes: image id -> height and width in pixels, for the images that could be read.
        detections: image id -> detections above the teacher's score floor, by descending score, for
            the same images in the same order. Boxes are in pixels of the image file, class indices
            are the teacher's own.
        rejected: image id -> the reason why the image could not be read.
    """

    sizes: dict[int, tuple[int, int]]
    detections: dict[int, Detections]
    rejected: dict[int, str]


class RawCache:
    """One teacher's raw predictions, in the folder <root>/<key>.

    A unit consists of two files. unit_00000.npz has the predictions, in NumPy's uncompressed
    format: it is exact and fast, and the same content gives the same bytes, because NumPy dates the
    members of the archive at 1980. unit_00000.json, the marker, has counts and the sha256 of the
    first file. The marker is written last, each file in one step. A unit is done if its marker
    exists and agrees with its file.

    Args:
        root: folder of this teacher's caches. It is made if it is missing.
        settings: all settings that change raw predictions, as JSON. Their hash is the key, so that
            other settings use another folder.
        record: facts that each marker notes but that are not in the key, such as versions of
            libraries.

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
            stored = file.read_text()
        except OSError as e:
            raise PermissionError(
                f"raw cache: expected a folder that can be written, found {self.folder} ({e}). "
                f"Set labels.output."
            ) from e
        if stored != text:
            raise ValueError(
                f"{file}: expected the settings whose hash is the folder's name, found others. "
                f"Remove {self.folder}, or set labels.output."
            )

    def claims(self) -> Claims:
        """Open the file in which processes claim units; see `Claims`."""
        return Claims(self.folder / "claims")

    def marked(self, unit: int) -> bool:
        """Whether a unit has a marker. This is faster than `done`, which reads the whole unit."""
        return self._marker(unit).exists()

    def done(self, unit: int) -> bool:
        """Whether a unit is complete, as it was written: not missing, cut off or changed.

        Raises:
            ValueError: the unit was made with other settings.
        """
        return self._checked(unit) is not None

    def missing(self, count: int) -> list[int]:
        """Those of the units 0 to count - 1 that are not done."""
        return [unit for unit in range(count) if not self.done(unit)]

    def write(self, unit: int, content: Unit) -> None:
        """Store a unit. An existing one is replaced."""
        sizes, detections, rejected = content
        in_order = [detections[image_id] for image_id in sizes]
        arrays: dict[str, np.ndarray] = dict(
            image_ids=np.array(list(sizes), np.int64),
            sizes=np.array(list(sizes.values()), np.int32).reshape(-1, 2),
            counts=np.array([len(d.scores) for d in in_order], np.int64),
            boxes=_join([d.boxes for d in in_order], np.empty((0, 4), np.float32)),
            scores=_join([d.scores for d in in_order], np.empty(0, np.float32)),
            classes=_join([d.classes for d in in_order], np.empty(0, np.int32)),
            rejected_ids=np.array(list(rejected), np.int64),
            reasons=np.array(list(rejected.values()), np.str_),
        )
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy 2's stub has a bool there
        marker = dict(
            key=self.key,
            images=len(sizes),
            boxes=len(arrays["scores"]),
            rejected=len(rejected),
            sha256=hashlib.sha256(file.getbuffer()).hexdigest(),
            record=self.record,
        )
        # An old marker must not vouch for the new file.
        self._marker(unit).unlink(missing_ok=True)
        for path in (self._file(unit), self._marker(unit)):
            remove_partial_files(path)
        write_file(self._file(unit), file.getbuffer())
        write_file(self._marker(unit), json.dumps(marker, sort_keys=True, indent=1).encode())

    def read(self, unit: int) -> Unit:
        """Read a unit that is done.

        Raises:
            ValueError: it is not done, or was made with other settings.
        """
        content = self._checked(unit)
        if content is None:
            raise ValueError(
                f"{self._file(unit)}: expected a complete unit with its marker, found it missing, "
                f"cut off or changed. Label again: only such units are labeled again."
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ids = arrays["image_ids"].tolist()
        sizes = {i: (h, w) for i, (h, w) in zip(ids, arrays["sizes"].tolist(), strict=True)}
        ends = arrays["counts"].cumsum()[:-1]
        classes = arrays["classes"].astype(np.int64)
        parts = [np.split(x, ends) for x in (arrays["boxes"], arrays["scores"], classes)]
        # Not strict: for a unit without images, np.split returns one empty part.
        detections = {
            i: Detections(boxes=boxes, scores=scores, classes=indices)
            for i, boxes, scores, indices in zip(ids, *parts, strict=False)
        }
        reasons = zip(arrays["rejected_ids"].tolist(), arrays["reasons"].tolist(), strict=True)
        return Unit(sizes, detections, dict(reasons))

    def counts(self, unit: int) -> dict[str, int]:
        """Numbers of images, boxes and rejected images of a unit, read from its marker alone."""
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
                f"{marker['key']}. Remove it: units of different settings must not be mixed."
            )
        return content if hashlib.sha256(content).hexdigest() == marker["sha256"] else None


def _join(arrays: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """Concatenate arrays, of which there may be none, in the dtype of an empty one."""
    return np.concatenate([empty, *arrays]).astype(empty.dtype)


class Claims:
    """Says which process works on which unit.

    A claim is a lock on one byte of a file. The kernel releases it when the process ends, for any
    reason. Nothing has to be cleaned up after a process was killed, and any other process can take
    over its unit. Processes need not know each other, nor how many there are.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = open(path, "ab")  # noqa: SIM115, closed by __exit__

    def take(self, unit: int) -> bool:
        """Try to claim a unit. Returns False if another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, unit)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            # The file system has no locks. Two processes may then label the same unit, with the
            # same result. The order in which they try units makes this rare.
            return True
        return True

    def release(self, unit: int) -> None:
        """Give up a claim."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, unit)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
