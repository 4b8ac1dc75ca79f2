"""The files that `make gpu` writes: performance_gpu.json with all figures, performance_gpu.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2kd.files import write_file, write_json
from d2kd.tools.gpu.parts import PARTS

__all__ = ["JSON", "PAGE", "page", "read_report", "write_report"]

JSON, PAGE = "performance_gpu.json", "performance_gpu.md"

# What must be equal for figures of two calls to stand in one report.
SAME = ("device", "torch", "cuda", "detectron2", "d2kd")

WORDS = {
    "done": "yes",
    "failed": "**it failed**",
    "over time": "**it took longer than its budget**",
    "error": "**it stopped with an error**",
}


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown.

    Args:
        report: "machine", from `describe_machine`, and "parts": name -> "status" (a key of
            `WORDS`), "seconds" and "text".
    """
    machine, parts = report["machine"], report["parts"]
    versions = [f"PyTorch {machine['torch']}"] + [f"CUDA {machine['cuda']}"] * bool(machine["cuda"])
    lines = [
        "# What distillation costs on a GPU",
        "",
        f"{machine['device']}, {', '.join(versions)}, Detectron2 {machine['detectron2']}, d2kd "
        f"{machine['d2kd']}. `make gpu` wrote this page; {JSON} has all figures. "
        f"[The page of the CPU](performance.md) explains the tables.",
        "",
        "| part | finished | s |",
        "|---|---|---|",
    ]
    for name, part in PARTS.items():
        found = parts.get(name)
        row = ("not run yet", "") if found is None else (WORDS[found["status"]], found["seconds"])
        seconds = f"{row[1]:.0f}" if row[1] != "" else ""
        lines.append(f"| {part.title} | {row[0]} | {seconds} |")
    for name, part in PARTS.items():
        if name in parts:
            lines += ["", f"## {part.title}", "", f"**Question.** {part.question}", ""]
            lines.append(parts[name]["text"].strip())
    return "\n".join(lines) + "\n"


def read_report(folder: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The report of earlier calls on the same machine, or an empty one."""
    path = folder / JSON
    if path.is_file():
        report = json.loads(path.read_text())
        if all(report["machine"][name] == machine[name] for name in SAME):
            return report
    return dict(machine=dict(machine), parts={})


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write both files."""
    write_json(folder / JSON, report)
    write_file(folder / PAGE, page(report))
