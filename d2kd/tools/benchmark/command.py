"""Measure what distillation costs, for any config, without its data and without downloads.

For each image size and each number of boxes, these run in turns in one process:

- a step of the student alone;
- the teacher, as far as the methods need it;
- a distilled step, with and without UET (the config's MCDropout, or else the default one);
- each method alone, forward and backward, on the maps of one batch;
- a plain squared error of the maps that a method compares. This is the cost of moving the maps
  through memory at all.

A step is a step of d2kd.engine.Trainer. Ratios are taken within each round, and the tables show
medians and quartiles over all rounds. Times come from CUDA events on a GPU and from the wall clock
on a CPU. Memory is the peak that PyTorch allocated during a turn, minus what was allocated before
the turn (weights and optimizer states). On a CPU, one additional round without a clock measures it.

Images and boxes are random and are made before the clock starts. The sides of a box are between 8
pixels and half of the image's side. All weights are random too: no checkpoint is read. Norms with
stored statistics get the statistics of their input, and the learning rate is 0. So no number
overflows, and no turn changes the weights for the next turn. All methods run, because their
schedules are left out. Code that depends on predictions, such as NMS of proposals, may take a
different time than in training.

The folder --output receives results.json (all samples, and the machine), results.md and bench.png.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage

from d2kd.commands import add_debug
from d2kd.config import load_config
from d2kd.files import write_file, write_json
from d2kd.methods import CWD, FGD, MGD, PFI, PGD, PKD, Methods, Mimic, RankMimic
from d2kd.progress import ProgressLine, RecentRate, bar
from d2kd.tools.benchmark.costs import ratios, scene_turns
from d2kd.tools.benchmark.setting import (
    build_model,
    build_trainers,
    describe_machine,
    large_maps,
    time_loader,
)
from d2kd.tools.benchmark.stopwatch import Ratio, Spread, Turn, picture, table, take_turns

EXAMPLES = """\
examples:
  d2kd benchmark --config-file my_distilled.py --sizes 800x1344 --output output/bench
  d2kd benchmark --config-file my_distilled.py train.device=cpu --sizes 128 --boxes 0 20 500 \
      --batch 2 --rounds 20 --output output/bench
"""

# --real-size: its methods, numbers of boxes in an image, size of an image, images in a batch.
REAL_METHODS = dict(fgd=FGD, pgd=PGD, mimic=Mimic, mgd=MGD, pkd=PKD, cwd=CWD, pfi=PFI, rm=RankMimic)
REAL_BOXES, REAL_SIZE, REAL_BATCH = (20, 500), (800, 1344), 2
REAL_SCENE = "P3 to P7 of 800 x 1344 pixels, 256 channels, batch 2"


def parse_size(text: str) -> tuple[int, int]:
    """Parse height and width in pixels: "800x1344", or "128" for a square image."""
    try:
        height, width = map(int, text.split("x") if "x" in text else (text, text))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"expected pixels, as 128 or 800x1344, found {text!r}")
    return height, width


def real_methods(names: Sequence[str]) -> Methods:
    """The methods of --real-size with their default arguments."""
    return Methods(**{name: REAL_METHODS[name]() for name in names})


def notes(results: dict) -> list[str]:
    """Lines below the tables that say how to read them."""
    m = results["machine"]
    lines = [
        f"Median (quartiles) of {results['rounds']} rounds; random weights, images and boxes; "
        f"{results['amp'] or 'fp32'}. {m['device']}, {m['threads']} threads on {m['cores']} cores, "
        f"PyTorch {m['torch']}."
    ]
    if m["load"] > m["cores"] / 2:
        lines.append(
            f"The machine was busy: its load was {m['load']:.1f} before the start. Trust the "
            f"ratios and their spread more than the times."
        )
    if results["data"]["seconds"]:
        spread = Spread.of(results["data"]["seconds"]).show(1e3)
        lines.append(
            f"Data: {spread} ms for a batch of {results['data']['batch']}, measured alone."
        )
    return lines


def run(args: argparse.Namespace) -> dict:
    """Measure everything that the arguments ask for.

    Returns:
        the content of results.json.

    Raises:
        FileNotFoundError: there is no config of that name.
        ValueError: the config does not fit.
    """
    cfg = load_config(args.config_file, args.overrides)
    if args.amp:
        cfg.train.amp.update(enabled=True, dtype=args.amp)
        if cfg.model.get("teacher"):
            cfg.model.teacher.dtype = args.amp
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build_model(cfg)
    device = torch.device(cfg.train.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    machine = describe_machine(device)
    data = time_loader(cfg, args.rounds) if args.data else []
    groups: list[tuple[list[Turn], list[Ratio]]] = []
    with EventStorage() as storage:
        trainers = build_trainers(cfg, model)
        for size in args.sizes:
            scene = "{} x {} pixels, batch ".format(*size) + str(args.batch)
            turns = scene_turns(model, trainers, scene, size, args.boxes, args.batch)
            groups.append((list(turns), list(ratios(model))))
        if args.real_size:
            large = large_maps(real_methods(args.real_size)).to(device)
            turns = scene_turns(large, {}, REAL_SCENE, REAL_SIZE, REAL_BOXES, REAL_BATCH)
            groups.append((list(turns), list(ratios(large))))
        all_turns = [turn for turns, _ in groups for turn in turns]
        print(f"{len(all_turns)} turns in each round, at most {args.rounds} rounds", flush=True)
        progress = _Progress(args.warm_up + args.rounds, storage)
        rounds = take_turns(
            all_turns,
            rounds=args.rounds,
            warm_up=args.warm_up,
            device=device,
            minutes=args.minutes,
            after_round=progress.step,
        )
        progress.line.close()
    measured = [([turn.record() for turn in turns], quotients) for turns, quotients in groups]
    results = dict(
        config=args.config_file,
        overrides=args.overrides,
        machine=machine,
        amp=cfg.train.amp.dtype if cfg.train.amp.enabled else None,
        rounds=rounds,
        data=dict(seconds=data, batch=cfg.dataloader.train.get("total_batch_size")),
        measurements=[m for records, _ in measured for m in records],
        ratios=[r for records, qs in measured for q in qs for r in q.records(records)],
    )
    return dict(results, notes=notes(results))


class _Progress:
    """Counts the finished rounds, for the trainers and for a line of progress with an ETA."""

    def __init__(self, total: int, storage: EventStorage):
        self.total, self.done, self.storage = total, 0, storage
        self.rate, self.line = RecentRate(), ProgressLine(sys.stderr, pause=5.0)

    def step(self) -> None:
        self.storage.step()
        self.done += 1
        self.rate.update(self.done)
        words = self.rate.words(self.total)
        self.line.show(bar("benchmark", self.done, self.total, words), self.done / self.total)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="d2kd benchmark",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "overrides",
        nargs="*",
        help="fields of the config, key=value; before options that take several values",
    )
    add("--config-file", required=True, help="config of a detector or a distiller")
    add("--output", type=Path, required=True, help="folder for the results")
    add(
        "--sizes", type=parse_size, nargs="+", default=[], metavar="HxW", help="of images in pixels"
    )
    add("--boxes", type=int, nargs="+", default=[0, 20, 500], help="default: 0 20 500")
    add("--batch", type=int, default=2, help="images in a batch; default: 2")
    add("--rounds", type=int, default=20, help="rounds that count; default: 20")
    add("--warm-up", type=int, default=2, help="rounds before them that do not count; default: 2")
    add(
        "--minutes",
        type=float,
        default=math.inf,
        help="start no round that may end later than this",
    )
    add(
        "--real-size",
        nargs="+",
        choices=REAL_METHODS,
        default=[],
        help=f"also measure these methods alone, on {REAL_SCENE}",
    )
    add("--data", action="store_true", help="also measure the config's own data loader")
    add("--amp", choices=["bfloat16", "float16"], help="mixed precision of student and teacher")
    add("--threads", type=int, help="threads of PyTorch on the CPU; default: what `d2kd` chooses")
    add_debug(parser)
    args = parser.parse_intermixed_args(argv)
    args.sizes, args.boxes = list(dict.fromkeys(args.sizes)), list(dict.fromkeys(args.boxes))
    for name, least in dict(batch=1, rounds=1, warm_up=0, threads=1).items():
        found = getattr(args, name)
        if found is not None and found < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, found {found}")
    if min(args.boxes) < 0:
        parser.error(f"--boxes: expected at least 0, found {min(args.boxes)}")
    if not args.sizes and not args.real_size:
        parser.error("expected --sizes or --real-size, found neither")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)  # now, so that a mistake does not cost the run
    words = sys.argv[1:] if argv is None else argv
    results = dict(command=shlex.join(["d2kd", "benchmark", *words]), **run(args))
    text = table(results) + "\n"
    write_json(args.output / "results.json", results)
    write_file(args.output / "results.md", text)
    write_file(args.output / "bench.png", picture(results))
    print(f"\n{text}\nWritten to {args.output}: results.json, results.md, bench.png")
    return 0
