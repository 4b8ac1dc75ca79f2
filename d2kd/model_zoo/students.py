"""The trained students that come with d2kd: their table, loading and saving.

students.json is the table; `python -m d2kd.tools.publish` writes its rows. The weights lie next to
the configs. They are safetensors files with the tensors of the plain detector, under its own names.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save

from ..files import sha256_of_file, write_file, write_json
from ..recipes import CONFIGS, get_config_file
from .detector import Detector

__all__ = ["Entry", "find_entry", "get_detector", "list_detectors", "save_student"]

TABLE = Path(__file__).with_name("students.json")


class Entry(NamedTuple):
    """A row of the table.

    Attributes:
        config: name of the student's config, see `d2kd.model_zoo.get_config`.
        weights: file of the weights, relative to the folder of the configs.
        sha256: hexadecimal digest of that file.
        classes: names of the classes.
        ap: box AP in percent.
        data: what `ap` was measured on.
        parameters: number of parameters.
        gflops: 10^9 multiply-adds for one picture of the data.
        training: where the training command is documented.
        labels: which teacher made labels that the student was trained on; "" if none did.
    """

    config: str
    weights: str
    sha256: str
    classes: tuple[str, ...]
    ap: float
    data: str
    parameters: int
    gflops: float
    training: str
    labels: str = ""

    @property
    def path(self) -> Path:
        """The file of the weights."""
        return CONFIGS / self.weights


def read_table() -> dict[str, Entry]:
    """Name -> row."""
    rows = json.loads(TABLE.read_text())
    return {name: Entry(**{**row, "classes": tuple(row["classes"])}) for name, row in rows.items()}


def write_entry(name: str, entry: Entry) -> None:
    """Add a row to the table, or replace the row of that name. The names are sorted."""
    rows = {**read_table(), name: entry}
    write_json(TABLE, {key: rows[key]._asdict() for key in sorted(rows)})


def list_detectors() -> list[str]:
    """Names for `get_detector`, sorted."""
    return sorted(read_table())


def find_entry(name: str) -> Entry:
    """The row of a trained student: classes, AP, size, and where its training is documented.

    Raises:
        ValueError: there is no student of that name.
    """
    table = read_table()
    if not isinstance(name, str) or name not in table:
        near = difflib.get_close_matches(str(name), table, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        known = ", ".join(sorted(table)) or "no name, because this version has no weights"
        raise ValueError(f"expected the name of a trained student ({known}), found {name!r}.{hint}")
    return table[name]


def get_detector(name: str, *, device: torch.device | str | None = None) -> Detector:
    """Load a trained student that comes with d2kd.

    Args:
        name: one of `list_detectors()`.
        device: default: the GPU if there is one, else the CPU.

    Returns:
        a function of a picture, see `Detector`.

    Raises:
        FileNotFoundError: the file of the weights is missing.
        ImportError: the backbone needs timm, which is not installed.
        ValueError: there is no student of that name, or the file of its weights has been changed.
    """
    entry = find_entry(name)
    if not entry.path.is_file():
        raise FileNotFoundError(
            f"{name}: expected its weights at '{entry.path}', found no file. Install d2kd again."
        )
    found = sha256_of_file(entry.path)
    if found != entry.sha256:
        raise ValueError(
            f"{name}: expected weights with sha256 {entry.sha256}, found {found} in "
            f"'{entry.path}'. The file has been changed or cut off. Install d2kd again."
        )
    return Detector(get_config_file(entry.config), entry.path, classes=entry.classes, device=device)


def save_student(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    path: str | os.PathLike,
    *,
    half: bool = False,
    max_bytes: int | None = None,
) -> str:
    """Write the tensors of a trained student, and nothing else, as safetensors.

    The file is smaller than a run's checkpoint, which also has the state of the optimizer. It can
    be given to `Detector`, to `Teacher` and to `d2kd evaluate`.

    Args:
        config: see `Detector`.
        checkpoint: the student's own, or a distiller's; its tensors must all fit.
        path: the new file, `*.safetensors`; its folder must exist.
        half: store fp32 tensors as fp16. The file is half as large, and the values are rounded to
            11 bits, so evaluate it before you share it. They are loaded as fp32 again.
        max_bytes: largest file to write; default: any size.

    Returns:
        hexadecimal sha256 of the file.

    Raises:
        FileNotFoundError: the config or the checkpoint does not exist.
        ValueError: the checkpoint does not fit the config, fp16 cannot hold a value, or the file
            would be too large.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise ValueError(f"path: expected the name of a .safetensors file, found '{path}'.")
    tensors = {}
    for key, tensor in Detector(config, checkpoint, device="cpu").model.state_dict().items():
        if half and tensor.dtype == torch.float32:
            rounded = tensor.half()
            if not rounded.isfinite().all():
                raise ValueError(
                    f"{checkpoint}: expected values that fp16 can hold (below 65504), found "
                    f"{tensor.abs().max():.3g} in {key}. Leave out half."
                )
            tensor = rounded
        # safetensors refuses tensors that share memory, as modules with two names do.
        tensors[key] = tensor.clone().contiguous()
    content = save(tensors, metadata={"format": "pt"})
    if max_bytes is not None and len(content) > max_bytes:
        hint = "" if half else " half=True stores half as many."
        raise ValueError(
            f"{path}: expected at most {max_bytes:,} bytes, found {len(content):,}.{hint}"
        )
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()
