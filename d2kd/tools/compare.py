#!/usr/bin/env python
"""Train several configs with several seeds and compare them.

    python tools/compare.py \\
        "alone: configs/experiments/dense/atss.py" \\
        "PGD: configs/experiments/dense/atss_pgd.py" \\
        "PGD x 2 (vs PGD): configs/experiments/dense/atss_pgd.py model.methods.pgd.weight=2" \\
        --output output/compare/atss --seeds 1 2 3

Each run is `train_net.py --config-file CONFIG train.seed=SEED OVERRIDES` in a folder of its own,
<output>/<name>/seed<k>. "{seed}" in an override stands for the seed: a second stage begins where a
first one of an earlier call ended, train.init_checkpoint=output/first/a/seed{seed}/model_final.pth.
Configs are looked for in the current folder, then in d2kd's. A run that was interrupted goes on
where its last checkpoint is, a finished one is not trained again, and one that fails stops no
other. Rows are compared seed by seed with the first one, with that of --against, or with their own:
"NAME (vs OTHER): CONFIG".

Written to <output>, anew after each run: results.md (means, spread, paired t tests), results.csv (a
line a run) and results.png. Runs beside each other on the same cores slow each other down: measure
seconds per iteration with one run at a time. Exit status 1: a run failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from d2kd.files import write_file
from d2kd.tools.runs import Run, train_all, visible_as
from d2kd.tools.seeds import MEASURES, SCORES, as_csv, picture, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ("results.md", "results.csv", "results.png")


class Entry(NamedTuple):
    name: str
    config: str
    overrides: tuple[str, ...]
    against: str | None  # the name of its own row to compare with
    root: Path  # where it is trained: the folder that its paths begin at

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.+-]+", "_", self.name)


def parse_entry(text: str) -> Entry:
    """One entry; its config lies in the current folder or, failing that, in d2kd's.

    Raises:
        ValueError: there is no config of that path, or the name cannot be that of a folder.
    """
    name, _, rest = text.rpartition(": ")
    config, *overrides = shlex.split(rest) or [""]
    roots = [root for root in (Path.cwd(), ROOT) if (root / config).is_file()]
    if not roots:
        raise ValueError(
            f"{text!r}: expected '[NAME [(vs OTHER)]:] CONFIG [OVERRIDES]', found no file "
            f"{config!r} in {Path.cwd()} or {ROOT}"
        )
    name, against = re.fullmatch(r"(.*?)(?: \(vs (.+)\))?", name or Path(config).stem).groups()
    entry = Entry(name, config, tuple(overrides), against, roots[0])
    if entry.folder in ("", ".", "..") or entry.folder in RESULTS:
        raise ValueError(f"{text!r}: expected a name for a folder of its own, found {name!r}")
    return entry


def read_entries(texts: Sequence[str], file: Path | None) -> list[Entry]:
    """Those of the command line, then those of a file: one a line, none after #.

    Raises:
        ValueError: there are none, or two share a folder.
    """
    lines = [line.strip() for line in file.read_text().splitlines()] if file else []
    entries = [parse_entry(t) for t in [*texts, *(x for x in lines if x and x[0] != "#")]]
    if not entries:
        raise ValueError("expected entries '[NAME:] CONFIG [OVERRIDES]' or a --file of them")
    if len({entry.folder for entry in entries}) < len(entries):
        names = [entry.name for entry in entries]
        raise ValueError(f"expected a different name for each entry, found {names}")
    return entries


def bases(entries: Sequence[Entry], against: str | None) -> dict[str, str]:
    """Which row each row is compared with.

    Args:
        against: the name of that of all rows that name none; default: the first.

    Raises:
        ValueError: no row has that name.
    """
    names = [entry.name for entry in entries]
    found = {entry.name: entry.against or against or names[0] for entry in entries}
    for base in found.values():
        if base not in names:
            raise ValueError(f"a row to compare with: expected one of {names}, found {base!r}")
    return {name: base for name, base in found.items() if name != base}


def publish(
    output: Path,
    runs: Sequence[Run],
    against: dict[str, str],
    seeds: Sequence[int],
    columns: Sequence[str] | None = None,
) -> str:
    """Write results.md, .csv and .png of what has finished; return the first."""
    results: dict[str, dict[int, dict[str, float]]] = {run.name: {} for run in runs}
    for run in runs:
        if (found := run.result()) is not None:
            results[run.name][run.seed] = found
    text = table(results, against, seeds, columns) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    contents = (text, as_csv(runs, results), picture(results, against))
    for name, content in zip(RESULTS, contents, strict=True):
        write_file(output / name, content)
    return text


def split_markers(place: str) -> tuple[Path, str, str, str]:
    """Find "FILE#NAME": what stands between <!-- compare: NAME --> and <!-- /compare -->.

    Returns:
        the file, its text up to the first marker, between them, and from the second on.

    Raises:
        ValueError: there are no such markers.
    """
    file, _, name = place.rpartition("#")
    first, last = f"<!-- compare: {name} -->", "<!-- /compare -->"
    text = Path(file).read_text() if Path(file).is_file() else ""
    before, found, rest = text.partition(first)
    between, end, after = rest.partition(last)
    if not found or not end or "<!-- compare: " in between or first in after:
        raise ValueError(f"--into {place}: expected one {first} and then {last} in {file!r}")
    return Path(file), before + found, between, end + after


def command_line(args: argparse.Namespace) -> str:
    """The command that makes the table, as an indented block of Markdown."""
    lines = [shlex.quote(entry) for entry in args.entries]
    lines += [f"--file {shlex.quote(str(args.file))}"] if args.file else []
    rest = ["--output", str(args.output), "--seeds", *map(str, args.seeds)]
    rest += ["--against", args.against] if args.against else []
    rest += ["--devices", *args.devices] if args.devices else []
    rest += ["--jobs", str(args.jobs)] if args.jobs > 1 else []
    rest += ["--columns", *args.columns] if args.columns else []
    command = ".venv/bin/python tools/compare.py"
    return "    " + " \\\n        ".join([command, *lines, shlex.join(rest)])


def pool(devices: Sequence[str] | None, jobs: int) -> list[str]:
    """A device for each run at a time; by default all CUDA devices, or else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if not devices:
        # In a process of its own: see runs.py.
        count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
        found = subprocess.run(count, check=True, stdout=subprocess.PIPE, text=True).stdout
        devices = [f"cuda:{i}" for i in range(int(found))] or ["cpu"]
    for device in devices:
        visible_as(device)
    return [*devices] * jobs


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("entries", nargs="*", help="'[NAME [(vs OTHER)]:] CONFIG [OVERRIDES]', quoted")
    add("--file", type=Path, help="more entries, one a line; lines that begin with # are comments")
    add("--output", type=Path, required=True, help="folder of all runs and results")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    add("--devices", nargs="+", help="cpu, cuda:0, ...; default: all CUDA devices, or else cpu")
    add("--jobs", type=int, default=1, help="runs at a time on each device; default: 1")
    add("--against", help="name of the row to compare with; default: the first")
    add("--columns", nargs="+", choices=[*SCORES, *MEASURES], metavar="COLUMN",
        help="of the table; default: all that there are values for")  # fmt: skip
    add("--into", metavar="FILE#NAME", help="also put the table and its command between "
        "<!-- compare: NAME --> and <!-- /compare --> of that file")  # fmt: skip
    add("--table-only", action="store_true", help="train nothing; show what is there")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs: expected at least 1, found {args.jobs}")
    args.seeds = list(dict.fromkeys(args.seeds))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    entries = read_entries(args.entries, args.file)
    against = bases(entries, args.against)
    if args.into:
        split_markers(args.into)  # before hours of training
    runs = [
        Run(e.name, e.config, e.overrides, seed, args.output / e.folder / f"seed{seed}", e.root)
        for e in entries
        for seed in args.seeds
    ]
    for run in runs:
        run.check()
    failed: dict[Run, str] = {}

    def ended(run: Run, problem: str) -> None:
        if problem:
            failed[run] = problem
        words = "FAILED" if problem else f"{run.result()['AP']:.1f} AP"
        print(f"{run.name}, seed {run.seed}: {words}", flush=True)
        publish(args.output, runs, against, args.seeds, args.columns)

    todo = [run for run in runs if run.result() is None]
    if todo and not args.table_only:
        devices = pool(args.devices, args.jobs)
        # More threads than cores wait for one another most of the time.
        cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        threads = max(cores // len(devices), 1)
        words = f"{len(todo)} of {len(runs)} runs to train, {len(devices)} at a time"
        print(f"{words}: {', '.join(devices)}; {threads} threads each", flush=True)
        # Seed by seed, so that an unfinished comparison is a fair one of fewer seeds.
        todo.sort(key=lambda run: args.seeds.index(run.seed))
        train_all(todo, ROOT / "train_net.py", devices, threads, ended)
    text = publish(args.output, runs, against, args.seeds, args.columns)
    print(text)
    if args.into:
        file, before, _, after = split_markers(args.into)
        write_file(file, f"{before}\n\n{text}\n{command_line(args)}\n\n{after}")
    for run, problem in failed.items():
        print(f"{run.name}, seed {run.seed}: {problem}\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoints.", file=sys.stderr)
        sys.exit(130)
