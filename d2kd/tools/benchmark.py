#!/usr/bin/env python
"""Measure what distillation costs, by any config, without its data and without downloads.

    python tools/benchmark.py --config-file configs/demo/distill.py train.device=cpu \\
        --sizes 128 --boxes 0 20 500 --batch 2 --rounds 20 --output output/bench

In one process, for each image size and number of boxes, these take turns: a step of the student
alone; the teacher, as far as the methods need it; a distilled step, with and without UET (by the
config's MCDropout, or else by the default one); each method alone, forward and backward, on the
maps that one batch gave; and a plain squared error of two maps of the teacher for each that the
method compares: what it costs to move them at all. Steps are those of d2kd.engine.Trainer.

Ratios are taken within each round; shown are medians and quartiles over rounds. Times are those of
CUDA events on a GPU, else of the wall. Memory is the most that PyTorch allocated during a turn
beyond what was there before it, which is weights and optimizer states; on a CPU, one more round,
without a clock, is for that.

Images and boxes are random (boxes from 8 pixels to half a side), made before the clock runs. So
are all weights: no checkpoint is read. Norms with stored statistics get those of their input, and
the learning rate is 0, so that no number overflows and no turn changes the next one's weights.
Schedules of methods are left out: all methods run. What depends on predictions, such as NMS of
proposals, may take another time than in training.

Written to --output: results.json (all samples, and the machine), results.md, bench.png.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage

from d2kd.config import load_config
from d2kd.files import write_file, write_json
from d2kd.methods import CWD, FGD, MGD, PFI, PGD, PKD, Methods, Mimic, RankMimic
from d2kd.tools.costs import ratios, scene_turns
from d2kd.tools.setting import (
    build_model,
    build_trainers,
    describe_machine,
    large_maps,
    time_loader,
)
from d2kd.tools.stopwatch import Ratio, Spread, Turn, picture, table, take_turns

# Methods in --real-size, boxes of an image there, and that image.
REAL_METHODS = dict(fgd=FGD, pgd=PGD, mimic=Mimic, mgd=MGD, pkd=PKD, cwd=CWD, pfi=PFI, rm=RankMimic)
REAL_BOXES, REAL_SIZE, REAL_BATCH = (20, 500), (800, 1344), 2
REAL_SCENE = "P3 to P7 of 800 x 1344 pixels, 256 channels, batch 2"


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels: of "800x1344", or of "128", a square."""
    try:
        height, width = map(int, text.split("x") if "x" in text else (text, text))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"expected pixels, as 128 or 800x1344, found {text!r}")
    return height, width


def real_methods(names: Sequence[str], forms: Sequence[str]) -> Methods:
    """Those of --real-size, by their defaults, and those that can in other `forms` too: "plain", by
    autograd alone, or "compiled", by torch.compile."""
    methods = {name: REAL_METHODS[name]() for name in names}
    for name, form in itertools.product(names, forms):
        method = REAL_METHODS[name]()
        if not method.compilable:
            continue
        if form == "compiled":
            method.compile_losses()
        else:
            for function, plain in method.compilable.items():
                setattr(method, function, plain)
        methods[f"{name} {form}"] = method
    return Methods(**methods)


def notes(results: dict) -> list[str]:
    """How to read the tables."""
    m = results["machine"]
    words = [
        f"Median (quartiles) of {results['rounds']} rounds; random weights, images and boxes; "
        f"{results['amp'] or 'fp32'}. {m['device']}, {m['threads']} threads on {m['cores']} cores, "
        f"PyTorch {m['torch']}."
    ]
    if m["load"] > m["cores"] / 2:
        words.append(
            f"Others were at work: the load was {m['load']:.1f} before the start. Trust ratios "
            f"rather than times, and these with their spread."
        )
    if results["data"]["seconds"]:
        spread = Spread.of(results["data"]["seconds"]).show(1e3)
        words.append(f"Data: {spread} ms for a batch of {results['data']['batch']}, apart.")
    return words


def run(args: argparse.Namespace) -> dict:
    """Measure all that the arguments ask for.

    Returns:
        the content of results.json.

    Raises:
        ValueError, FileNotFoundError: a config that is not there or does not fit.
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
            large = large_maps(real_methods(args.real_size, args.forms)).to(device)
            turns = scene_turns(large, {}, REAL_SCENE, REAL_SIZE, REAL_BOXES, REAL_BATCH)
            groups.append((list(turns), list(ratios(large))))
        all_turns = [turn for turns, _ in groups for turn in turns]
        print(f"{len(all_turns)} turns a round, at most {args.rounds} rounds", flush=True)
        rounds = take_turns(
            all_turns,
            rounds=args.rounds,
            warm_up=args.warm_up,
            device=device,
            minutes=args.minutes,
            after_round=storage.step,
        )
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


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("overrides", nargs="*", help="of the config, key=value; before options of many values")
    add("--config-file", required=True, help="LazyConfig of a detector or a distiller")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--sizes", type=parse_size, nargs="+", default=[], metavar="HxW", help="of images, pixels")
    add("--boxes", type=int, nargs="+", default=[0, 20, 500], help="default: 0 20 500")
    add("--batch", type=int, default=2, help="images in a batch; default: 2")
    add("--rounds", type=int, default=20, help="that count; default: 20")
    add("--warm-up", type=int, default=2, help="rounds before those; default: 2")
    add("--minutes", type=float, default=math.inf, help="begin no round that may end later")
    add(
        "--real-size",
        nargs="+",
        choices=REAL_METHODS,
        default=[],
        help=f"also these methods alone on {REAL_SCENE}",
    )
    add(
        "--forms",
        nargs="+",
        choices=["plain", "compiled"],
        default=[],
        help="and these by autograd alone, or by torch.compile",
    )
    add("--data", action="store_true", help="also the config's own data loader, alone")
    add("--amp", choices=["bfloat16", "float16"], help="of student and teacher")
    add("--threads", type=int, help="of PyTorch on the CPU; default: its own choice")
    args = parser.parse_intermixed_args(argv)
    args.sizes, args.boxes = list(dict.fromkeys(args.sizes)), list(dict.fromkeys(args.boxes))
    for name, least in dict(batch=1, rounds=1, warm_up=0, threads=1).items():
        found = getattr(args, name)
        if found is not None and found < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, found {found}")
    if min(args.boxes) < 0:
        parser.error(f"--boxes: expected at least 0, found {min(args.boxes)}")
    if args.forms and not args.real_size:
        parser.error("--forms: expected --real-size, whose methods it is about, found none")
    if not args.sizes and not args.real_size:
        parser.error("expected --sizes or --real-size, found neither")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)  # before the work, lest it is for nothing
    words = sys.argv[1:] if argv is None else argv
    results = dict(command=shlex.join(["python", "tools/benchmark.py", *words]), **run(args))
    text = table(results) + "\n"
    write_json(args.output / "results.json", results)
    write_file(args.output / "results.md", text)
    write_file(args.output / "bench.png", picture(results))
    print(f"\n{text}\nWritten to {args.output}: results.json, results.md, bench.png")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, TypeError, ValueError) as error:
        sys.exit(str(error))
