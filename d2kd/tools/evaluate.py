"""Evaluate a checkpoint with the data and the evaluator of a config.

The config of a distiller evaluates its student, or its teacher with --teacher. The checkpoint can
be a plain detector's or a distiller's. Its tensors must all fit: a missing or unexpected tensor is
an error.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("evaluate", "d2kd evaluate", sys.argv[1:]))

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from d2kd.audit import audit_in_all_processes
from d2kd.checkpoint import load_strictly
from d2kd.checks import check_weights
from d2kd.commands import add_debug, config_first
from d2kd.config import check_config, load_config
from d2kd.data import register_all
from d2kd.evaluation import evaluate, teacher_of
from d2kd.evaluation.errors import KINDS, ErrorEvaluator
from d2kd.launch import launch
from d2kd.loading import build_student
from d2kd.ranks import on_main_process

__all__ = ["main"]

logger = logging.getLogger("d2kd")

EXAMPLES = """\
examples:
  d2kd evaluate my_student.py --weights output/my_distilled/model_final.pth --num-gpus 8
  d2kd evaluate my_distilled.py --teacher train.device=cpu
"""


def run(args: argparse.Namespace) -> None:
    """Evaluate in this process, which can be one of several. The log has the results."""
    register_all()
    cfg = load_config(args.config, args.overrides)
    for name in ("fvcore", "detectron2", "d2kd"):
        setup_logger(distributed_rank=comm.get_rank(), name=name)
    if args.teacher and args.weights and cfg.model.get("teacher") is not None:
        cfg.model.teacher.weights = args.weights
    on_main_process(lambda: _check(args, cfg))
    if "evaluator" not in cfg.dataloader:
        raise ValueError(f"{args.config}: expected dataloader.evaluator, found none")
    audit_in_all_processes(cfg, ["test"], ["teacher" if args.teacher else "student"])
    more = [ErrorEvaluator(cfg.dataloader.test.dataset.names)] if args.errors else []
    if args.teacher:
        distiller = instantiate(cfg.model).to(cfg.train.device)
        evaluate(cfg, teacher_of(distiller), more)
        return
    model: nn.Module = build_student(cfg.model, pretrained=False).model
    counts = load_strictly(model, args.weights)
    logger.info("%s: %s from %s", type(model).__name__, counts, args.weights)
    evaluate(cfg, model.to(cfg.train.device), more)


def _check(args: argparse.Namespace, cfg: DictConfig) -> None:
    check_config(cfg, teacher=args.teacher, evaluates_teacher=args.teacher)
    if not args.teacher:
        check_weights("the checkpoint", args.weights)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="d2kd evaluate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", help="config of a detector or a distiller")
    add("checkpoint", nargs="?", help="the same as --weights")
    add("overrides", nargs="*", help="fields of the config, key=value")
    add("--weights", help="path or URL of the checkpoint; with --teacher: default: the config's")
    add("--teacher", action="store_true", help="evaluate the teacher of a distiller's config")
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    add("--errors", action="store_true",
        help=f"also say how much AP50 would rise without each kind of error ({kinds})")  # fmt: skip
    add("--num-gpus", type=int, default=1, help="processes; default: 1")
    add_debug(parser)
    args = parser.parse_intermixed_args(config_first(argv))
    if args.checkpoint and "=" in args.checkpoint and not os.path.exists(args.checkpoint):
        args.overrides.insert(0, args.checkpoint)
        args.checkpoint = None
    if args.checkpoint and args.weights:
        parser.error(f"expected one checkpoint, found {args.checkpoint} and {args.weights}")
    args.weights = args.weights or args.checkpoint
    if not args.weights and not args.teacher:
        parser.error("expected --weights or --teacher, found neither")
    # Detectron2's launch asks for these.
    args.num_machines, args.machine_rank, args.dist_url = 1, 0, "auto"
    launch(run, args)
    return 0
