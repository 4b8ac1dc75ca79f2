"""Helpers of the tests of the comparison."""

import json
from pathlib import Path

from d2kd.tools import compare


def run_main(root: Path, *args: str, devices=("cpu",)) -> int:
    return compare.main([*args, "--output", str(root / "out"), "--devices", *devices])


def calls(root: Path) -> list[dict]:
    path = root / "calls.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def cells(text: str, row: str) -> dict[str, str]:
    """Title -> cell of a row of a Markdown table."""
    head, _, *rest = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    )
    return dict(zip(head, next(r for r in rest if r[0] == row), strict=True))


def metrics(ap: float, **others: float) -> dict[str, float]:
    return {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2, **others}
