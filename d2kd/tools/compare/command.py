"""The command line of the comparison."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from d2kd.commands import add_debug
from d2kd.files import write_file
from d2kd.tools.runs import Run, end_with_signals, environment, is_running, run_all, visible_as

from .describe import Description, describe
from .entries import RESULTS, Entry, choose_bases, read_entries
from .report import Report
from .results import Comparison, Line, read_lines, split_markers, table_size
from .run import EntryRun, make_runs
from .summarize import summarize
from .table import MEASURES, SCORES
from .teachers import teacher_runs

DESCRIPTION = """\
Train several configs with several seeds, and compare them.

Each run is `d2kd train --config-file CONFIG train.seed=SEED OVERRIDES` in a folder of its own,
<output>/<name>/seed<k>. "{seed}" in an override stands for the seed. With it, a second stage begins
where the first stage of an earlier call ended:
train.init_checkpoint=output/first/a/seed{seed}/model_final.pth. Configs are looked for in the
current folder, then among the configs that come with d2kd. A run that was interrupted goes on from
its last checkpoint, a finished run is not trained again, and a run that fails stops no other.
Before the first run, all configs are loaded, and the checkpoints and labels that they name must be
there, or in the folder of an earlier run, which may make them.

Rows are compared seed by seed with the first row, with the row of --against, or with the row that
the entry names: "NAME (vs OTHER): CONFIG". If a config distills, its teacher is evaluated once and
becomes a row, and each distilled row shows the share of the gap to the teacher that it closes. A
teacher can also be given, with "NAME (teacher): CONFIG train.init_checkpoint=WEIGHTS"; without
weights it is trained as the other rows are.

A difference means little before the student alone has converged. Add it with N, 2N and 4N steps
(train.max_iter). Rows of one config that differ only in train.max_iter, periods and lr_multiplier
are a curve, named after the words that their names begin with. curves.png joins the final AP of its
rows, over steps and over training time. Thin lines are AP during a training: while the learning
rate is still high, it is below the final AP of a shorter training. Training time is the mean time
of a step, teacher included, times the steps. Evaluations, checkpoints and steps that a resumed run
repeats do not count. Compare times only between runs made one at a time on one machine.

Warnings: the teacher is less than 5 AP above the best student alone; twice the steps add more than
1 AP, and more than the standard deviation over seeds; rows of unequal lengths are compared.

Written to <output>, anew after each run: results.md (means, spread, paired t tests), results.csv (a
line for each run), results.png and curves.png. Rows and seeds of earlier calls stay in the table;
--replace forgets them. Runs that share cores slow each other down: measure seconds per iteration
with one run at a time. Exit status 1: a run failed.
"""
EXAMPLES = """\
examples:
  d2kd compare "alone: configs/demo/student.py" "FGD: configs/demo/distill.py" \\
      "FGD x 2 (vs FGD): configs/demo/distill.py model.methods.fgd.weight=2" \\
      --output output/compare/fgd --seeds 1 2 3
  d2kd compare --summarize output/seed1/results.json output/seed2/results.json
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="d2kd compare",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("entries", nargs="*", help="'[NAME [(vs OTHER)|(teacher)]:] CONFIG [OVERRIDES]', quoted")
    add("--file", type=Path, help="more entries, one a line; lines that begin with # are comments")
    add("--output", type=Path, help="folder of all runs and results")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    add("--devices", nargs="+", help="cpu, cuda:0, ...; default: all CUDA devices, or else cpu")
    add("--jobs", type=int, default=1, help="runs at a time on each device; default: 1")
    add("--against", help="name of the row to compare with; default: the first")
    add("--no-teacher", action="store_true", help="do not evaluate the teachers of the configs")
    add("--columns", nargs="+", choices=[*SCORES, *MEASURES], metavar="COLUMN",
        help="of the table; default: all that there are values for")  # fmt: skip
    add("--into", metavar="FILE#NAME", help="also put the table and its command between "
        "<!-- compare: NAME --> and <!-- /compare --> of that file")  # fmt: skip
    add("--replace", action="store_true", help="make the table of this call's entries and seeds "
        "only, even if it becomes smaller")  # fmt: skip
    add("--table-only", action="store_true", help="train nothing; show what is there")
    add("--summarize", type=Path, nargs="+", metavar="RESULTS",
        help="instead: mean and spread of the demo's results.json of several seeds")  # fmt: skip
    add_debug(parser)
    args = parser.parse_args(argv)
    if args.summarize is None and args.output is None:
        parser.error("--output: expected the folder of all runs and results, found none")
    if args.jobs < 1:
        parser.error(f"--jobs: expected at least 1, found {args.jobs}")
    args.seeds = list(dict.fromkeys(args.seeds))
    return args


def choose_devices(devices: Sequence[str] | None, jobs: int) -> list[str]:
    """A device for each run at a time; by default all CUDA devices, or else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if not devices:
        # In a process of its own, because this one must not import PyTorch: see d2kd.tools.runs.
        code = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
        done = subprocess.run(
            code, check=True, stdout=subprocess.PIPE, text=True, env=environment()
        )
        devices = [f"cuda:{i}" for i in range(int(done.stdout))] or ["cpu"]
    for device in devices:
        visible_as(device)
    return [*devices] * jobs


def describe_entries(
    entries: Sequence[Entry],
    previous: Sequence[Line],
    seeds: Sequence[int],
    todo: Sequence[EntryRun],
) -> dict[str, Description]:
    """Describe the configs of the entries, unless all that matters is known from results.csv.

    Args:
        previous: the lines of results.csv.
        todo: the runs that are to be done, in their order.

    Raises:
        ValueError: there are such runs, and a config cannot be loaded with its overrides, or a file
            that it names is not there.
    """
    known = {line.entry.name for line in previous if line.teacher is not None}
    if not todo and all(entry.name in known for entry in entries):
        return {}
    found = describe(entries, seeds[0], todo)
    problems = [f"{e}: {d.problem}" for e, d in zip(entries, found, strict=True) if d.problem]
    if todo and problems:
        shown = "\n  ".join(problems)
        raise ValueError(
            f"expected entries that can be trained, found others: nothing was trained, because of "
            f"these entries:\n  {shown}"
        )
    return {entry.name: description for entry, description in zip(entries, found, strict=True)}


def command_line(args: argparse.Namespace, lines: Sequence[Line], entries: Sequence[Entry]) -> str:
    """The command that makes the whole table, as an indented block of Markdown.

    Args:
        lines: of the whole table, which may have rows of earlier calls.
        entries: of this call.
    """
    given = {entry.name for entry in entries}
    # Teachers that were evaluated on their own come with the rows that they teach.
    evaluated = {line.teacher for line in lines if line.teacher}
    earlier = {
        line.entry.name: line.entry
        for line in lines
        if line.entry.name not in given
        and not (line.entry.name in evaluated and not line.entry.has_weights and line.seed is None)
    }
    words = [shlex.quote(str(entry)) for entry in earlier.values()]
    words += [shlex.quote(entry) for entry in args.entries]
    words += [f"--file {shlex.quote(str(args.file))}"] if args.file else []
    seeds = sorted({line.seed for line in lines if line.seed is not None}) or args.seeds
    rest = ["--output", str(args.output), "--seeds", *map(str, seeds)]
    rest += ["--against", args.against] if args.against else []
    rest += ["--devices", *args.devices] if args.devices else []
    rest += ["--jobs", str(args.jobs)] if args.jobs > 1 else []
    rest += ["--no-teacher"] if args.no_teacher else []
    rest += ["--columns", *args.columns] if args.columns else []
    return "    " + " \\\n        ".join(["d2kd compare", *words, shlex.join(rest)])


def check_into(args: argparse.Namespace, planned: int) -> None:
    """Refuse to replace a table in a document by a smaller one.

    Args:
        planned: number of runs of the new table.

    Raises:
        ValueError: the table that is there has more runs, or there are no markers.
    """
    _, _, between, _ = split_markers(args.into)
    there = table_size(between)
    if planned < there and not args.replace:
        raise ValueError(
            f"--into {args.into}: expected a table of at least the {there} runs that are there, "
            f"found {planned}. Name all entries and seeds, or add --replace to put the smaller "
            f"table there."
        )


def in_order(runs: Sequence[EntryRun], seeds: Sequence[int]) -> list[EntryRun]:
    """The runs that are not finished, in the order in which they are done.

    The teacher comes first: that a student alone reaches it is worth knowing early. Then seed by
    seed, so that an unfinished comparison is a fair one of fewer seeds.
    """
    todo = [run for run in runs if not run.finished]
    return sorted(todo, key=lambda run: -1 if run.seed is None else seeds.index(run.seed))


def train(args: argparse.Namespace, todo: list[EntryRun], comparison: Comparison) -> dict[Run, str]:
    """Do the runs and publish after each of them.

    Returns:
        failed run -> what went wrong.
    """
    devices = choose_devices(args.devices, args.jobs)
    threads = environment(at_a_time=len(devices))["OMP_NUM_THREADS"]
    print(f"{len(todo)} of {len(comparison.runs)} runs to train, {len(devices)} at a time: "
          f"{', '.join(devices)}; {threads} threads each", flush=True)  # fmt: skip
    report, failed = Report(todo, len(devices)), dict[Run, str]()

    def ended(run: Run, problem: str) -> None:
        if problem:
            failed[run] = problem
        figures = run.result() if isinstance(run, EntryRun) else None
        words = "FAILED" if problem or not figures else f"{figures['AP']:.1f} AP"
        # A call that was killed by SIGKILL leaves its training at work.
        report.ended(run, problem if problem and is_running(run.folder) else words)
        comparison.publish()

    try:
        run_all(todo, ended, report.watch, devices)
    finally:
        report.close()
    return failed


def compare(args: argparse.Namespace) -> int:
    entries = read_entries(args.entries, args.file)
    previous = [] if args.replace else read_lines(args.output / RESULTS[1])
    runs = [run for e in entries for run in make_runs(e, args.seeds, args.output)]
    # Runs of other seeds go on in the same rows, so they must be of the same settings too.
    rows = {entry.name: entry for entry in entries}
    others = sorted({x.seed for x in previous if x.entry.name in rows and x.seed is not None})
    for run in [*runs, *(r for e in entries for r in make_runs(e, others, args.output))]:
        run.check()
    students = dict.fromkeys(x.entry.name for x in previous if not x.entry.is_teacher)
    known = {x.entry.name: x.entry.against for x in previous if x.entry.against}
    against = choose_bases(entries, args.against, known, students)
    if args.into:
        split_markers(args.into)  # before hours of training
    todo = [] if args.table_only else in_order(runs, args.seeds)
    described = describe_entries(entries, previous, args.seeds, todo)
    evaluations, teachers = teacher_runs(
        entries, described, previous, args.output, evaluate=not args.no_teacher
    )
    if described:
        runs = [
            run
            for e in entries
            for run in make_runs(e, args.seeds, args.output, described[e.name].max_iter)
        ]
    comparison = Comparison(
        args.output, [*runs, *evaluations], against, teachers, args.columns, args.replace
    )
    if args.into:
        check_into(args, comparison.planned())
    failed: dict[Run, str] = {}
    if not args.table_only:
        todo = in_order(comparison.runs, args.seeds)
        failed = train(args, todo, comparison) if todo else {}
    text = comparison.publish()
    print(text)
    for failure, problem in failed.items():
        print(f"{failure.title}: {problem}\n", file=sys.stderr)
    if args.into:
        block = f"{text}\n{command_line(args, comparison.lines(), entries)}"
        check_into(args, table_size(block))
        file, before, _, after = split_markers(args.into)
        write_file(file, f"{before}\n\n{block}\n\n{after}")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments. Default: the arguments of the process.

    Returns:
        exit status: 0; 1 if a run failed.

    Raises:
        KeyboardInterrupt: with how to go on.
        ValueError: an argument is wrong, or a folder holds another run.
    """
    args = parse_args(argv)
    if args.summarize is not None:
        print(summarize(args.summarize))
        return 0
    try:
        with end_with_signals():
            return compare(args)
    except KeyboardInterrupt as stop:
        stop.args = ("The same command goes on from the last checkpoints.",)
        raise
