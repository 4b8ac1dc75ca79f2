"""Run and measure everything that needs a GPU, in under nine minutes.

It runs the tests that need a GPU, measures a distilled step and each method in bfloat16, compiles
the losses, counts how often the host waits, and trains for some steps in mixed precision with a
resume. Each part has a budget of seconds and a process of its own. The folder --output receives
performance_gpu.md and performance_gpu.json after each part, so that a call that was stopped is not
lost: the next one runs the parts that are missing. Without a GPU, there is nothing to do, and the
exit status is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from d2kd.commands import add_debug
from d2kd.files import write_json
from d2kd.tools.benchmark.setting import describe_machine
from d2kd.tools.gpu.parts import PARTS, Setting
from d2kd.tools.gpu.report import PAGE, read_report, write_report

__all__ = ["BUDGET", "main", "run_in_child"]

BUDGET = 535.0  # seconds of a whole call, with room for its start: nine minutes are 540

EXAMPLES = """\
examples:
  python -m d2kd.tools.gpu --output docs
  python -m d2kd.tools.gpu --output output/gpu --parts step methods --fresh
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m d2kd.tools.gpu",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for performance_gpu.md and .json")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--fresh", action="store_true", help="run these parts again, also if they are finished")
    add("--seconds", type=float, default=BUDGET, help=f"of this call; default: {BUDGET:g}")
    add("--device", default="cuda", help="cpu is for trying this command; default: cuda")
    add("--quick", action="store_true", help="tiny networks and images, for trying this command")
    add("--child", help=argparse.SUPPRESS)  # run one part in this process, write it to this file
    add_debug(parser)
    return parser.parse_args(argv)


def run_in_child(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own, and end it if it takes longer than `seconds`.

    Returns:
        "status": "done", "failed" (what the part checks is not so), "over time" or "error";
        "seconds", "text" and "data".
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record.json")
        command = [sys.executable, "-m", "d2kd.tools.gpu", "--output", folder, "--parts", name]
        command += ["--device", args.device, "--seconds", str(seconds), "--child", str(record)]
        command += ["--quick"] * args.quick
        start = time.perf_counter()
        # A session of its own: its trainings and compilers end with it.
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = child.communicate(timeout=seconds)
            status = "error"
        except subprocess.TimeoutExpired:
            status, printed = "over time", ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        took = time.perf_counter() - start
        if record.is_file() and status != "over time":
            return dict(json.loads(record.read_text()), seconds=took)
    text = f"It was ended after {took:.0f} s." if status == "over time" else ""
    lines = printed.strip().splitlines()[-8:]
    return dict(
        status=status,
        seconds=took,
        text=text or "\n".join(["```", *lines, "```"]),
        data={"output": printed[-4000:]},
    )


def run_here(name: str, args: argparse.Namespace) -> None:
    """Run a part in this process, and write what it found."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(args.device, args.quick, Path(folder), args.seconds)
        found = PARTS[name].run(setting)
    status = "done" if found.passed else "failed"
    write_json(args.child, dict(status=status, text=found.text, data=found.data))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("This machine has no GPU that PyTorch can use: nothing was run or written.")
        return 0
    if args.child:
        run_here(args.parts[0], args)
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    report = read_report(args.output, describe_machine(torch.device(args.device)))
    bad = False
    for name in args.parts:
        part = PARTS[name]
        if not args.fresh and report["parts"].get(name, {}).get("status") == "done":
            print(f"{part.title}: finished in an earlier call")
            continue
        left = args.seconds - (time.perf_counter() - start)
        if left < part.seconds:
            print(
                f"{part.title}: {left:.0f} s are left, and it may take {part.seconds:.0f} s. "
                f"Call the command again."
            )
            continue
        print(f"{part.title}: at most {part.seconds:.0f} s", flush=True)
        record = run_in_child(name, args, part.seconds)
        report["parts"][name] = record
        write_report(args.output, report)
        bad |= record["status"] != "done"
        print(f"  {record['status']} after {record['seconds']:.0f} s", flush=True)
    print(f"See {args.output / PAGE}")
    return int(bad)
