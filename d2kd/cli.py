"""The `d2kd` command. Each subcommand is a module of `d2kd.tools` with a `main(argv) -> int`.

This module does not import PyTorch: the number of threads must be set first, see `d2kd.threads`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from . import __version__
from .commands import run_tool

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """A subcommand: the module of `d2kd.tools` that has its `main`, and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "demo": Command("demo", "train a small student with and without its teacher, in minutes"),
    "train": Command("write_config", "train with a config, or write the config for you first"),
    "evaluate": Command("evaluate", "evaluate a checkpoint, or the teacher of a config"),
    "audit": Command("audit", "look for mistakes in the data of a config, or in a data set"),
    "label": Command("label", "label images with teachers, to train a student on them"),
    "data": Command("data", "convert labels (VOC, YOLO, DeepPCB) to a registered COCO dataset"),
    "weights": Command("weights", "convert ImageNet weights of packages for backbones of timm"),
    "compare": Command("compare", "train several configs with several seeds, and compare them"),
    "benchmark": Command("benchmark", "measure the time and the memory that distillation costs"),
    "visualize": Command("visualize", "draw what networks detect, and what each method compares"),
    "predict": Command("predict", "detect on images: pictures with boxes, and a COCO file"),
    "export": Command("export", "write a student as Detectron2, TorchScript and ONNX files"),
    "doctor": Command("doctor", "check whether this machine and a config will work"),
}

EXAMPLES = """\
examples:
  d2kd doctor my_distilled.py
  d2kd train --config-file my_distilled.py --num-gpus 8
"""


def usage() -> str:
    """The text of `d2kd --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return (
        "usage: d2kd COMMAND ...\n\n"
        "Knowledge distillation for Detectron2.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`d2kd COMMAND --help` explains a command; `d2kd --version` prints the version.\n"
        "With --debug, a command shows the traceback of every error.\n\n" + EXAMPLES
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the arguments after `d2kd`. Default: the arguments of the process.

    Returns:
        exit status: 0; 1 where a check found something; 2 for an error that the user can fix.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"d2kd {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean `d2kd {near[0]}`?" if near else ""
        expected = ", ".join(COMMANDS)
        print(f"d2kd: expected a command ({expected}), found {name!r}.{hint}", file=sys.stderr)
        return 2
    return run_tool(COMMANDS[name].module, f"d2kd {name}", rest)
