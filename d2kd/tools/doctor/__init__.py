"""Check whether this machine and a config will work, on one screen.

Without a config, the machine is checked: versions, devices, threads. With a config, the data, the
teacher's weights, the levels and channels that each method pairs and the numbers of classes are
checked too. Then a step of the student alone and a distilled step run on one real batch, for their
time and memory. Nothing is written, except that the demo's data is made where a config names it,
and what the audit of the data has read is cached.

Each line begins with ok, warning or problem. A problem in one check does not stop the others. The
exit status is 0 if there is no problem, else 1.
"""

from __future__ import annotations

import argparse
import copy
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2kd.commands import add_debug, config_first

from .report import OK, PROBLEM, WARNING, Report

if TYPE_CHECKING:
    from d2kd.audit import Audit

__all__ = ["main"]

EXAMPLES = """\
examples:
  d2kd doctor my_distilled.py
  d2kd doctor my_distilled.py --num-gpus 8 train.amp.enabled=True
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="d2kd doctor",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="config of a detector or a distiller")
    parser.add_argument("overrides", nargs="*", help="fields of the config, key=value")
    parser.add_argument("--num-gpus", type=int, default=1, help="that share a batch; default: 1")
    parser.add_argument("--no-step", action="store_true", help="measure no step")
    add_debug(parser)
    args = parser.parse_intermixed_args(config_first(argv))
    if args.num_gpus < 1:
        parser.error(f"--num-gpus: expected at least 1, found {args.num_gpus}")
    report = Report()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what the libraries log does not fit on the screen
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from .machine import check_machine  # before anything that may not be importable

            if check_machine(report) and args.config:
                _check_config(report, args)
    finally:
        logging.disable(before)
    return report.conclude()


def _show_audit(report: Report, audit: Audit) -> None:
    for level, text in audit.messages:
        report.add({"refused": PROBLEM, "warning": WARNING}.get(level, OK), "audit", text)
    if not audit.messages:
        report.ok("audit", f"no defects in {', '.join(s.name for s, _ in audit.sets) or 'no data'}")


def _check_config(report: Report, args: argparse.Namespace) -> None:
    from d2kd.audit import audit_config
    from d2kd.checks import check_mean_teacher
    from d2kd.config import check_config, load_config
    from d2kd.data import register_all

    from . import cost, data, detectors, machine

    cfg = None
    with report.check("config"):
        register_all()
        cfg = load_config(args.config, args.overrides)
    if cfg is None:
        return
    start = report.count(PROBLEM)
    with report.check("config"):
        fields = copy.deepcopy(cfg)
        fields.dataloader = {}  # its data sets are checked below, one by one
        check_config(fields)
        check_mean_teacher(cfg)
        machine.check_output(report, cfg.train.output_dir)
        report.ok("config", f"{args.config}: all fields are known, train.device={cfg.train.device}")
    runs = report.count(PROBLEM) == start
    start = report.count(PROBLEM)
    classes = data.check_data(report, cfg)
    if report.count(PROBLEM) == start and runs:
        with report.check("config"):
            check_config(cfg)  # the order of channels, too
        with report.check("audit"):
            _show_audit(report, audit_config(cfg))
    has_data = report.count(PROBLEM) == start
    teacher, fits = detectors.check_teacher(report, cfg)
    student, loaded = detectors.check_student(report, cfg)
    start = report.count(PROBLEM)
    detectors.check_classes(report, cfg, student, teacher, classes)
    detectors.check_methods(report, cfg, student, teacher)
    detectors.check_inherit(report, cfg, student, teacher)
    builds = teacher is not None and report.count(PROBLEM) == start
    if args.no_step:
        return
    if not (runs and has_data and student is not None):
        report.warning("step", "no step is measured, because of the problems above")
        return
    is_distiller = "student" in cfg.model and cfg.model.get("teacher") is not None
    if is_distiller and not builds:
        report.warning("step", "no distilled step is measured, because of the problems above")
    if is_distiller and not fits:
        cfg.model.teacher.weights = None  # the time does not depend on them
    distill = is_distiller and builds
    cost.check_cost(report, cfg, distill=distill, loaded=loaded, gpus=args.num_gpus)
