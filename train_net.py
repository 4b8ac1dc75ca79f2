#!/usr/bin/env python
"""Train and evaluate with a LazyConfig, with or without distillation.

This is Detectron2's tools/lazyconfig_train_net.py with gradient clipping and accumulation, mixed
precision on any device, torchrun, exact resume, and what a distiller adds: inheritance, and
evaluation of the teacher.
"""

if __name__ == "__main__":
    from d2kd.threads import configure_threads

    configure_threads()  # OpenMP reads its settings when PyTorch is imported

import contextlib
import logging
import os
import sys

import torch
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser, default_setup, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm

from d2kd import Distiller
from d2kd.audit import audit_in_all_processes
from d2kd.checkpoint import Checkpointer, load_strictly
from d2kd.commands import call, parse_arguments
from d2kd.config import check_config, load_config
from d2kd.data import register_all
from d2kd.data.train_loader import TrainLoader
from d2kd.ema import EMA
from d2kd.engine import ExactResume, ScheduleProgress, Trainer
from d2kd.evaluation import check_teacher, evaluate, teacher_of
from d2kd.launch import launch
from d2kd.logs import hold_messages, setup_loggers
from d2kd.partial_labels import check_partial_labels
from d2kd.ranks import on_main_process
from d2kd.readers import num_classes
from d2kd.recipes import config_path
from d2kd.resume import (
    RunRecord,
    explain_interruption,
    first_step,
    run_settings,
    training_classes,
)
from d2kd.run_lock import (
    check_run_folder,
    drop_kept_weights,
    keep_finished_run,
    lock_run_folder,
)
from d2kd.student_files import BestStudent, FinalStudent, changes_student, closing_line
from d2kd.visualize import training_pictures
from d2kd.writers import default_writers

logger = logging.getLogger("d2kd")


def do_train(args, cfg, dataset=None, kept=None):
    """
    Args:
        cfg: the sections of Detectron2's lazyconfig_train_net.py: model, optimizer, lr_multiplier,
            dataloader.{train,test,evaluator} and train. configs/common/train.py explains the fields
            of `train`.
        dataset: the training set, where the audit had to load it.
        kept: folder of what an earlier run left in this place.
    """
    loader = TrainLoader(cfg.dataloader.train, cfg.train.accumulate, dataset)
    loader.prepare()
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    model.to(cfg.train.device)
    check_teacher(cfg, model)
    check_partial_labels(cfg, model)

    cfg.optimizer.params.model = model
    optimizer = build_optimizer(cfg.optimizer)
    distiller = model if isinstance(model, Distiller) else None
    student = model if distiller is None else distiller.student
    cpu = {} if cfg.train.device.startswith("cuda") else {"device_ids": None}
    model = create_ddp_model(model, **cfg.train.ddp, **cpu)

    amp, period = cfg.train.amp, cfg.train.checkpointer.period
    trainer = Trainer(
        model,
        optimizer,
        amp_dtype=getattr(torch, amp.dtype) if amp.enabled else None,
        accumulate=cfg.train.accumulate,
        clip_grad_norm=cfg.train.clip_grad_norm,
        gather_period=cfg.train.log_period,
        folder=cfg.train.output_dir,
    )
    ema = EMA(student, cfg.train.ema.decay) if cfg.train.ema.decay else None
    mean_teacher = build_mean_teacher(cfg, distiller, ema)
    batches = loader if mean_teacher is None else mean_teacher.label_batches(loader)
    checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=trainer)
    resuming = args.resume and checkpointer.has_checkpoint()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            RunRecord(cfg.train.max_iter, training_classes(cfg), run_settings(cfg)),
            ExactResume(batches, period, cfg.train.seed),
            ScheduleProgress() if distiller is not None else None,
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            ema,
            mean_teacher,
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
            if comm.is_main_process()
            else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate_students(cfg, model, ema)),
            *(student_files(cfg, student, ema) if comm.is_main_process() else []),
            *(reports(cfg, distiller or student, resuming) if comm.is_main_process() else []),
        ]
    )
    checkpointer.resume_or_load(
        cfg.train.init_checkpoint, resume=args.resume, replaces=kept is None
    )
    if distiller is not None and not resuming:
        distiller.inherit()  # after loading, because initial weights would overwrite it
    comm.synchronize()  # all processes have loaded
    if kept is not None and comm.is_main_process():
        drop_kept_weights(cfg.train.output_dir, kept)
    start = first_step(trainer.iter + 1, cfg.train.max_iter) if resuming else 0
    if start == cfg.train.max_iter:  # a run may have been killed just before this
        checkpointer.save_missing("model_final", iteration=start - 1)
    with explain_interruption(trainer, lambda: checkpointer.own):
        trainer.train(start, cfg.train.max_iter)
    if comm.is_main_process():
        # The saved config also has the overrides; the original one may register its data. A config
        # that YAML cannot say is saved as a pickle only.
        saved = f"{cfg.train.output_dir}/config.yaml"
        needed = changes_student(args.opts) and os.path.isfile(saved)
        config = saved if needed else args.config_name
        weights, metrics = checkpointer.get_checkpoint_file(), trainer.storage.latest()
        logger.info(closing_line(config, weights, metrics))


def build_mean_teacher(cfg, distiller, ema):
    """The hook of `train.mean_teacher`, or None."""
    if not cfg.train.mean_teacher:
        return None
    mean_teacher = instantiate(cfg.train.mean_teacher)
    student = distiller.student
    mean_teacher.connect(student, ema, num_classes(student), cfg.train.log_period)
    return mean_teacher


def evaluate_students(cfg, model, ema):
    """The student's results and, under "ema", the results of its average."""
    if ema is None:
        return evaluate(cfg, model)
    logger.info("Evaluate the average of the student's weights (ema)")
    averaged = evaluate(cfg, ema.model)
    logger.info("Evaluate the student")
    return {**evaluate(cfg, model), "ema": averaged}


def student_files(cfg, student, ema):
    """Hooks that save the student and its average alone, without methods and optimizer."""
    students = {"student": ("", student)}
    if ema is not None:
        students["student_ema"] = ("ema/", ema.model)
    folder, metric = cfg.train.output_dir, cfg.train.best_metric
    for name, (prefix, detector) in students.items():
        if ema is not None or metric:
            yield FinalStudent(detector, folder, f"{name}_final")
        if metric:
            yield BestStudent(
                detector, folder, f"{name}_best", prefix + metric, cfg.train.eval_period
            )


def reports(cfg, model, resuming):
    """Hooks that draw pictures and write what the others have measured; the writers come last."""
    if pictures := training_pictures(cfg, model):
        yield pictures
    train = cfg.train
    writers = default_writers(train.output_dir, train.max_iter, train.writers, resume=resuming)
    yield hooks.PeriodicWriter(writers, period=train.log_period)


def build_optimizer(node):
    try:
        return instantiate(node)
    except ValueError as e:  # such as betas of 2
        raise ValueError(f"optimizer: expected values that it takes, found: {e}.") from e


def main(args):
    register_all()
    args.config_name, args.config_file = args.config_file, config_path(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    trains = not (args.eval_only or args.eval_teacher)
    # Before the lock and the log, so that a run that is refused leaves nothing behind.
    with hold_messages() as messages:
        on_main_process(lambda: check_run(args, cfg, trains))
    locks = comm.is_main_process() and trains
    with lock_run_folder(cfg.train.output_dir) if locks else contextlib.nullcontext():
        train_or_evaluate(args, cfg, messages)


def check_run(args, cfg, trains):
    check_run_folder(cfg.train.output_dir, training=trains, resume=args.resume)
    check_config(
        cfg,
        training=trains,
        initial_weights=not (args.eval_teacher or args.resume),
        teacher=True,
        evaluates_teacher=args.eval_teacher,
    )


def train_or_evaluate(args, cfg, messages):
    setup_loggers(cfg.train.output_dir, comm.get_rank(), messages)
    evaluated = ["student"] * args.eval_only + ["teacher"] * args.eval_teacher
    # This also makes the demo's data, if the config uses them.
    dataset = audit_in_all_processes(cfg, ["test"] if evaluated else ["train", "test"], evaluated)
    kept = None
    if not evaluated and not args.resume:
        kept = on_main_process(lambda: keep_finished_run(cfg.train.output_dir))
    # After the checks, because it replaces the config.yaml of an earlier run.
    default_setup(cfg, args)
    if not evaluated:
        do_train(args, cfg, dataset, kept)
        return
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_teacher:
        evaluate(cfg, teacher_of(model))
    if args.eval_only:
        if not cfg.train.init_checkpoint:
            raise ValueError("train.init_checkpoint: expected a checkpoint to evaluate, found none")
        student = model.student if isinstance(model, Distiller) else model
        counts = load_strictly(student, cfg.train.init_checkpoint)
        logger.info("%s: %s from %s", type(student).__name__, counts, cfg.train.init_checkpoint)
        evaluate(cfg, model)


def argument_parser():
    parser = default_argument_parser(__doc__)
    parser.add_argument("--eval-teacher", action="store_true", help="evaluate the teacher only")
    return parser


def run(argv):
    launch(main, parse_arguments(argument_parser(), argv))


if __name__ == "__main__":
    sys.exit(call("train_net.py", run))
