#!/usr/bin/env python
"""Train several configs with several seeds and compare their accuracy.

    python tools/compare.py \\
        "alone: configs/demo/dense/atss.py" \\
        "PGD: configs/demo/dense/atss_pgd.py" \\
        "PGD x 2: configs/demo/dense/atss_pgd.py model.methods.pgd.weight=2" \\
        --output output/compare/atss --seeds 1 2 3

Each run is `train_net.py --config-file CONFIG train.seed=SEED OVERRIDES` in a folder of its own
below --output. A run that was interrupted goes on where its last checkpoint is, a finished one is
not trained again. The table is printed and written to <output>/results.md. Its last column compares
with the first row, or with that of --against, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Run:
    """One training with one seed."""

    name: str
    config: str
    overrides: tuple[str, ...]
    seed: int
    folder: Path

    @property
    def options(self) -> list[str]:
        return [*self.overrides, f"train.seed={self.seed}"]

    def result(self) -> dict[str, float] | None:
        """Its metrics, if it has finished."""
        path = self.folder / "metrics.json"
        lines = path.read_text().splitlines() if path.exists() else []
        last = json.loads(lines[-1]) if lines else {}
        done = (self.folder / "model_final.pth").exists() and "bbox/AP" in last
        return {m: last[f"bbox/{m}"] for m in METRICS} if done else None

    def check(self) -> None:
        """
        Raises:
            ValueError: the folder holds a run of another config or with other options.
        """
        note = self.folder / "run.json"
        found = json.loads(note.read_text()) if note.exists() else None
        expected = [self.config, *self.options]
        if found not in (None, expected):
            raise ValueError(
                f"{self.folder}: expected a run of {shlex.join(expected)}, found one of "
                f"{shlex.join(found)}. Choose another --output or name, or delete the folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        note.with_suffix(".tmp").write_text(json.dumps(expected))
        note.with_suffix(".tmp").replace(note)

    def train(self, threads: int) -> None:
        """
        Raises:
            RuntimeError: the training failed.
        """
        if self.result() is not None:
            return
        command = [sys.executable, "train_net.py", "--resume", "--config-file", self.config]
        command += [*self.options, f"train.output_dir={self.folder.resolve()}"]
        with open(self.folder / "output.txt", "a") as log:
            code = subprocess.run(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            ).returncode
        if code or self.result() is None:
            raise RuntimeError(f"{self.name}, seed {self.seed}: see {self.folder}/output.txt")
        print(f"{self.name}, seed {self.seed}: {self.result()['AP']:.1f} AP", flush=True)


def parse_entry(entry: str) -> tuple[str, str, tuple[str, ...]]:
    """ "[name:] config [overrides]" to its parts.

    Raises:
        ValueError: no config of that path.
    """
    name, _, rest = entry.rpartition(": ")
    config, *overrides = shlex.split(rest)
    if not (ROOT / config).exists():
        raise ValueError(f"{entry!r}: expected '[name:] CONFIG [OVERRIDES]', no file {config}")
    return name or Path(config).stem, config, tuple(overrides)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, where there are two or more."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(results: dict[str, list[dict[str, float]]], against: str) -> str:
    """Markdown of the mean and deviation over seeds, and of the paired difference to one row.

    Args:
        results: name -> metrics of each seed, the same seeds in the same order.
        against: the name of that row.
    """
    base = results[against]
    rows = []
    for name, runs in results.items():
        gains = [run["AP"] - own["AP"] for run, own in zip(runs, base, strict=True)]
        cells = [spread([run[m] for run in runs]) for m in METRICS]
        rows.append([name, *cells, "" if runs is base else spread(gains)])
    headers = ["", *METRICS, f"AP - {against}"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("entries", nargs="+", help="'[name:] CONFIG [OVERRIDES]', quoted")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--against", help="name of the entry to compare with; default: the first")
    args = parser.parse_args()

    entries = [parse_entry(entry) for entry in args.entries]
    names = [name for name, *_ in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"expected a different name for each entry, found {names}")
    against = args.against or names[0]
    if against not in names:
        raise ValueError(f"--against: expected one of {names}, found {against!r}")
    runs = {
        name: [
            Run(name, config, overrides, seed, args.output / _folder(name) / f"seed{seed}")
            for seed in args.seeds
        ]
        for name, config, overrides in entries
    }
    for run in (run for seeds in runs.values() for run in seeds):
        run.check()
    # More threads than cores wait for one another most of the time.
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    threads = max(cores // args.jobs, 1)
    with ThreadPoolExecutor(args.jobs) as pool:
        # Seed by seed, so that an unfinished comparison is a fair one of fewer seeds.
        waiting = [
            pool.submit(run.train, threads)
            for seeds in zip(*runs.values(), strict=True)
            for run in seeds
        ]
        for job in waiting:
            job.result()
    text = table({name: [run.result() for run in seeds] for name, seeds in runs.items()}, against)
    temporary = args.output / "results.md.tmp"
    temporary.write_text(text + "\n")
    temporary.replace(args.output / "results.md")
    print(text)


def _folder(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
