"""What `d2kd doctor` measures: memory and seconds of a step, on one real batch."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from d2kd import Distiller
from d2kd.checkpoint import Checkpointer
from d2kd.data.train_loader import TrainLoader
from d2kd.engine import Trainer
from d2kd.loading import build_student
from d2kd.tools.benchmark.setting import ALONE, DISTILLED, build_trainers, clear_schedules, settle

from .machine import total_memory
from .report import Report, show_duration

__all__ = ["Cost", "check_cost", "measure_step"]

STEPS, ENOUGH = 3, 10.0  # steps that are timed, and seconds after which they end sooner


class Cost(NamedTuple):
    """Seconds of one step, and bytes of its peak memory."""

    seconds: float
    memory: int


def check_cost(report: Report, cfg: DictConfig, *, distill: bool, loaded: bool, gpus: int) -> None:
    """Measure steps of the student alone and of the distiller, and project the whole training.

    Nothing is written, and `cfg` does not change.

    Args:
        distill: whether the distiller can be built.
        loaded: whether the student starts from a checkpoint that can be read here.
        gpus: processes that share a batch.
    """
    cfg = copy.deepcopy(cfg)
    accumulate = int(cfg.train.get("accumulate", 1))
    costs: dict[str, Cost] = {}
    with report.check("batch"):
        batch, seconds = _load_batch(cfg, gpus)
        size = max(tuple(x["image"].shape[-2:]) for x in batch)
        boxes = sum(len(x["instances"]) for x in batch if "instances" in x)
        text = f"{len(batch)} images of up to {size[0]} x {size[1]} pixels with {boxes} boxes"
        report.ok("batch", f"{text}, loaded in {seconds:.2f} s by one process")
        with report.check(ALONE), EventStorage():
            student = build_student(cfg.model).model
            costs[ALONE] = _measure(report, cfg, student, ALONE, batch, loaded)
            del student
        gc.collect()
        if distill:
            with report.check(DISTILLED), EventStorage():
                model = instantiate(cfg.model)
                costs[DISTILLED] = _measure(report, cfg, model, DISTILLED, batch, loaded)
                del model
    if not costs:
        return
    name, cost = (DISTILLED, costs[DISTILLED]) if DISTILLED in costs else (ALONE, costs[ALONE])
    total = cfg.train.max_iter * accumulate * cost.seconds
    batches = f" of {accumulate} batches" if accumulate > 1 else ""
    report.ok(
        "training",
        f"{cfg.train.max_iter} steps{batches} ({name}s) take {show_duration(total)} at this speed, "
        f"plus loading and evaluation",
    )
    _check_memory(report, cfg, max(c.memory for c in costs.values()))


def _load_batch(cfg: DictConfig, gpus: int) -> tuple[Sequence[dict], float]:
    """One batch of the training data for one process, and the seconds for loading it."""
    node = cfg.dataloader.train
    if "total_batch_size" in node:
        if node.total_batch_size % gpus:
            raise ValueError(
                f"dataloader.train.total_batch_size: expected a multiple of the {gpus} processes, "
                f"found {node.total_batch_size}"
            )
        node.total_batch_size //= gpus
    if "num_workers" in node:
        node.num_workers = 0  # starting workers takes longer than one batch
    loader = TrainLoader(node)
    loader.prepare()
    start = time.perf_counter()
    batch = next(iter(loader(0, 0)))
    return batch, time.perf_counter() - start


def _measure(
    report: Report,
    cfg: DictConfig,
    model: nn.Module,
    name: str,
    batch: Sequence[dict],
    loaded: bool,
) -> Cost:
    device = torch.device(cfg.train.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    model.to(device)
    student = model.student if isinstance(model, Distiller) else model
    if loaded:
        Checkpointer(student, save_to_disk=False).load(cfg.train.init_checkpoint)
    else:
        settle(student, batch)
    if isinstance(model, Distiller) and model.teacher is not None:
        clear_schedules(model)
        if cfg.model.teacher.get("weights") is None:
            settle(model.teacher.to(device).model, batch)
    cost = measure_step(build_trainers(cfg, model)[name], batch, device)
    where = "of the GPU" if device.type == "cuda" else "of the process"
    report.ok(
        "student" if name == ALONE else "distilled",
        f"{cost.seconds:.3g} s for a {name}, peak memory {where} {cost.memory / 2**30:.2f} GiB",
    )
    return cost


def measure_step(trainer: Trainer, batch: Sequence[dict], device: torch.device) -> Cost:
    """Run a step for warm-up and up to `STEPS` more. The fastest of these counts.

    The warm-up does not count, because it compiles a teacher with `compile=True`.

    Args:
        trainer: its learning rate is 0.
        batch: the same for all steps.
    """
    trainer.set_loader(itertools.repeat(batch))
    trainer.iter, trainer.max_iter = 0, STEPS + 1
    trainer.model.train()
    _reset_peak(device)
    warm_up = _timed_step(trainer, device)
    times: list[float] = []
    while len(times) < STEPS and (not times or warm_up + sum(times) < ENOUGH):
        times.append(_timed_step(trainer, device))
    trainer.optimizer.zero_grad(set_to_none=True)
    return Cost(min(times), _peak(device))


def _timed_step(trainer: Trainer, device: torch.device) -> float:
    start = time.perf_counter()
    trainer.run_step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    trainer.iter += 1
    return time.perf_counter() - start


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    # On Linux, this resets the peak. Elsewhere, the peak covers the whole process so far.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Bytes: allocated by PyTorch on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _check_memory(report: Report, cfg: DictConfig, peak: int) -> None:
    device = torch.device(cfg.train.device)
    if device.type == "cuda":
        total: int | None = torch.cuda.get_device_properties(device).total_memory
    else:
        total = total_memory()
    if total and peak > 0.9 * total:
        report.warning(
            "memory",
            f"{peak / 2**30:.1f} of {total / 2**30:.1f} GiB: larger images may not fit. Use a "
            f"smaller dataloader.train.total_batch_size with train.accumulate.",
        )
