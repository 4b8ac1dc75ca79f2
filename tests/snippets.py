"""Find the snippets of a page, and list the commands of a shell snippet without running them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGES", "ROOT", "Snippet", "find_snippets", "list_commands"]

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *(ROOT / name for name in ("README.md", "datasets/README.md", "configs/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
    if "_build" not in path.parts
)

# An indented block is a shell snippet if a line of it begins with one of these; else it is text,
# such as the layout of a folder. They are all that a snippet may call.
PROGRAMS = ("d2kd", "python", "pip", "make", "git", "cp", "ls", "tensorboard")
_COMMAND = re.compile(
    rf"(?m)^ *(\$ |(\S+=\S+ )*(\.venv/bin/)?({'|'.join(PROGRAMS)}) |export |for )"
)
MARKER = re.compile(r"<!-- not run: (.+?) -->")

# A program that writes its name and its arguments to the file $CALLS instead of doing something.
RECORDER = """#!/bin/sh
{ printf '%s\\037' "${0##*/}" "$@"; printf '\\036'; } >> "$CALLS"
"""


class Snippet(NamedTuple):
    """A piece of code of a page.

    Attributes:
        page: path of the page, relative to the repository.
        line: its first line in the page, from 1.
        kind: "python"; "shell"; "transcript", shell commands after "$ " with what they print.
        text: without fence and indentation.
        reason: why the page says that it cannot be run ("<!-- not run: ... -->" before it).
    """

    page: str
    line: int
    kind: str
    text: str
    reason: str | None


def find_snippets(page: str, text: str | None = None) -> list[Snippet]:
    """All snippets of a page, in their order.

    Args:
        page: path relative to the repository.
        text: default: the text of the page.
    """
    lines = (ROOT / page).read_text().splitlines() if text is None else text.splitlines()
    found, i, reason = [], 0, None
    while i < len(lines):
        start, line = i, lines[i]
        i += 1
        kind, block = None, []
        if fence := re.match(r"```(.*)", line):
            while i < len(lines) and not lines[i].startswith("```"):
                block.append(lines[i])
                i += 1
            i += 1
            kind = {"python": "python", "sh": "shell", "bash": "shell"}.get(fence[1].strip())
            start += 1
        elif line.startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            block = [line]
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                block.append(lines[i])
                i += 1
            kind = "shell" if _COMMAND.search("\n".join(block)) else None
        if kind is not None:
            code = "\n".join(x.removeprefix("    ") if kind == "shell" else x for x in block)
            kind = "transcript" if code.startswith("$ ") else kind
            found.append(Snippet(page, start + 1, kind, code.rstrip() + "\n", reason))
        if line.strip():
            marker = MARKER.fullmatch(line.strip())
            reason = marker[1] if marker else None
    return found


def list_commands(script: str, folder: Path) -> list[list[str]]:
    """The commands that a shell script calls, with loops and variables resolved.

    bash runs the script, and finds nothing in its PATH but mkdir and programs that record their
    arguments.

    Args:
        folder: an empty folder, or one that an earlier call used, in which the script runs.

    Returns:
        program and arguments of each call.

    Raises:
        AssertionError: the script is no valid shell, or calls another program.
    """
    programs = folder / ".venv/bin"
    if not programs.exists():
        programs.mkdir(parents=True)
        for name in PROGRAMS:
            (programs / name).write_text(RECORDER)
            (programs / name).chmod(0o755)
        (programs / "mkdir").write_text('#!/bin/sh\nexec /bin/mkdir -p "$@"\n')
        (programs / "mkdir").chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    bash = shutil.which("bash") or "bash"
    done = subprocess.run(
        [bash, "-eu", "-c", script],
        cwd=folder,
        env={"PATH": str(programs), "CALLS": str(calls), "HOME": os.fspath(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    records = calls.read_text().split("\036")[:-1]
    return [record.split("\037")[:-1] for record in records]
