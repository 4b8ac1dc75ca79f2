"""Read the metrics.json that Detectron2's `JSONWriter` writes: one dict a line."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["parse_line", "read_metrics"]


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.json; none if there is no such file.

    A process that was killed may have left a part of a line, which is passed over.

    Args:
        folder: of the run, `train.output_dir`.
    """
    path = folder / "metrics.json"
    text = path.read_text(errors="replace") if path.is_file() else ""
    return [line for line in map(parse_line, text.splitlines()) if line]


def parse_line(line: str) -> dict:
    """The dict in a line; {} if a killed process has left only a part of it."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) else {}
