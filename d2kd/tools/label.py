#!/usr/bin/env python
"""Label images with teachers, as the config's `labels` says (see d2kd/pseudo/job.py).

Labels the units that are missing, then fuses what the teachers found and writes labels.json (COCO),
provenance.json, report.md, report.json and samples.png to labels.output. The same command goes on
after an interruption, in any number of processes: --num-gpus N (on a machine without a GPU,
processes on its CPU), or torchrun.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from d2kd.data import register_all
from d2kd.engine import launch
from d2kd.pseudo.coco import verify
from d2kd.pseudo.job import Job
from d2kd.pseudo.label import label, open_cache, speed_alone

EXAMPLES = """\
examples:
  d2kd label --config-file labels.py --dry-run
  d2kd label --config-file labels.py --num-gpus 8 labels.output=output/labels
"""


def try_out(job: Job, count: int = 50) -> None:
    """Label some images into a folder that is removed again, and say how long all will take."""
    some, total = job.manifest.sample(count, job.seed), len(job.manifest)
    with tempfile.TemporaryDirectory() as place:
        for name, teacher in job.teachers.items():
            for part, root in ((some.sample(2 * teacher.batch_size), "warm-up"), (some, name)):
                cache = open_cache(Path(place, root), part, teacher, job.unit_size, job.device)
                options = dict(num_workers=job.num_workers, device=job.device, name=name)
                speed = label(part, teacher, cache, max_rejected=1, **options)["images_per_second"]
            alone = speed_alone(some, teacher, job.device)
            share = f"{speed / alone:.2f}" if alone else "none"
            counts = [cache.counts(unit) for unit in range(len(part.units(job.unit_size)))]
            images, boxes = (sum(c[key] for c in counts) for key in ("images", "boxes"))
            print(
                f"{name}: {speed:.1f} images a second, {share} of what it does without "
                f"reading and writing; {total / speed / 3600:.2f} hours for all {total} in one "
                f"process on this {job.device}; {boxes / max(images, 1):.1f} boxes "
                f"per image above its floor, {len(some) - images} of {len(some)} images unreadable"
            )


def check(path: Path) -> None:
    """Say what differs between labels, provenance and raw predictions; status 1 if anything."""
    differs = verify(path)
    print("\n".join(differs) or f"{path}, its provenance and its raw predictions are as written")
    sys.exit(1 if differs else 0)


def run(args: argparse.Namespace) -> None:
    """Label in this process, which can be one of several."""
    register_all()
    setup_logger(distributed_rank=comm.get_rank(), name="d2kd")
    if args.verify:
        cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
        check(Path(cfg.labels.output, "labels.json"))
    job = Job(args.config_file, args.opts)
    if args.dry_run:
        if comm.is_main_process():
            try_out(job)
        return
    if not args.overwrite:
        job.check_output()
    job.make()


def main(argv: Sequence[str] | None = None) -> int:
    parser = default_argument_parser(EXAMPLES)
    parser.prog, parser.description = "d2kd label", __doc__
    add = parser.add_argument
    add("--dry-run", action="store_true", help="label 50 images and print how long all take")
    add("--verify", action="store_true", help="check labels and raw predictions")
    add("--overwrite", action="store_true", help="replace labels of other settings")
    launch(run, parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
