"""Label images with teachers, as `labels` of a config says; docs/pseudo.md is the guide.

The command writes labels.json (in COCO's format), provenance.json, report.md, report.json and
samples.png to the folder labels.output. After an interruption, the same command continues where it
stopped. It runs in any number of processes: add --num-gpus N (on a machine without a GPU, N
processes on its CPU), or use torchrun.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("label", "d2kd label", sys.argv[1:]))

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from d2kd.audit import audit_labels
from d2kd.commands import parse_arguments
from d2kd.data import register_all
from d2kd.launch import launch
from d2kd.lazy import apply_overrides, load_lazy_config
from d2kd.pseudo.coco import verify
from d2kd.pseudo.job import LabelingJob
from d2kd.pseudo.label import label_images, open_cache, teacher_speed
from d2kd.pseudo.pipeline import run_labeling
from d2kd.recipes import config_path

EXAMPLES = """\
examples:
  d2kd label --config-file labels.py --dry-run
  d2kd label --config-file labels.py --num-gpus 8 labels.output=output/labels
"""


def estimate(job: LabelingJob, count: int = 50) -> None:
    """Label some images into a temporary folder, and print how long all images will take."""
    sample, total = job.manifest.sample(count, job.seed), len(job.manifest)
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher in job.teachers.items():
            warm_up = sample.sample(2 * teacher.batch_size)
            for images, root in ((warm_up, "warm-up"), (sample, name)):
                cache = open_cache(Path(folder, root), images, teacher, job.unit_size, job.device)
                done = label_images(
                    images,
                    teacher,
                    cache,
                    max_rejected=1,
                    num_workers=job.num_workers,
                    device=job.device,
                    name=name,
                )
            speed = done["images_per_second"]
            alone = teacher_speed(sample, teacher, job.device)
            share = f"{speed / alone:.2f}" if alone else "none"
            counts = [cache.counts(unit) for unit in range(len(sample.units(job.unit_size)))]
            readable, boxes = (sum(c[key] for c in counts) for key in ("images", "boxes"))
            print(
                f"{name}: {speed:.1f} images per second, {share} of its speed without reading and "
                f"writing; {total / speed / 3600:.2f} hours for all {total} in one process on this "
                f"{job.device}; {boxes / max(readable, 1):.1f} boxes per image above its floor, "
                f"{len(sample) - readable} of {len(sample)} images unreadable"
            )


def check(path: Path) -> None:
    """Print what differs between labels, provenance and raw predictions; exit with 1 if it does."""
    differences = verify(path)
    print(
        "\n".join(differences) or f"{path}, its provenance and its raw predictions are as written"
    )
    sys.exit(1 if differences else 0)


def run(args: argparse.Namespace) -> None:
    """Label in this process, which can be one of several."""
    register_all()
    setup_logger(distributed_rank=comm.get_rank(), name="d2kd")
    if args.verify:
        cfg = apply_overrides(load_lazy_config(args.config_file), args.opts)
        check(Path(cfg.labels.output, "labels.json"))
    job = LabelingJob.from_config(args.config_file, args.opts)  # checks the fields
    audit_labels(dict(images=job.images, fit=job.fit, truth=job.truth))
    if args.dry_run:
        if comm.is_main_process():
            estimate(job)
        return
    if not args.overwrite:
        job.check_output()
    run_labeling(job)


def main(argv: Sequence[str] | None = None) -> int:
    parser = default_argument_parser(EXAMPLES)
    parser.prog, parser.description = "d2kd label", __doc__
    add = parser.add_argument
    add("--dry-run", action="store_true", help="label 50 images and print how long all take")
    add("--verify", action="store_true", help="check labels and raw predictions")
    add("--overwrite", action="store_true", help="replace labels of other settings")
    args = parse_arguments(parser, argv)
    args.config_file = config_path(args.config_file)
    try:
        launch(run, args)
    except KeyboardInterrupt as stop:
        stop.args = ("The same command goes on from there.",)
        raise
    return 0
