"""Measure detectors (accuracy, size, speed) and put the figures into a table."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from torch import nn

from ..checkpoint import PREFIX, read_checkpoint
from .run import evaluate

__all__ = [
    "Figures",
    "count_gflops",
    "count_parameters",
    "gap_sentence",
    "load_plain",
    "measure_accuracy",
    "measure_speed",
    "table",
]


class Figures(TypedDict):
    """The figures of one detector.

    Attributes:
        AP, AP50, AP75: in percent, by COCOEvaluator.
        params: number of parameters.
        gflops: 10^9 multiply-adds for one image.
        ms: milliseconds for one image.
    """

    AP: float
    AP50: float
    AP75: float
    params: int
    gflops: float
    ms: float


def load_plain(cfg, weights: str | Path) -> nn.Module:
    """Build the detector of a config without distillation, and load a run's checkpoint into it.

    The checkpoint is loaded by Detectron2, as a user without d2kd would load it.

    Args:
        cfg: LazyConfig with `model` and `train.device`.
        weights: the checkpoint of a detector or of a distiller.

    Returns:
        the detector in evaluation mode.

    Raises:
        ValueError: the tensors of the file and of the detector differ in names or shapes.
    """
    model = instantiate(cfg.model).to(cfg.train.device).eval()
    tensors = read_checkpoint(str(weights))["model"]
    shapes = {k: v.shape for k, v in tensors.items() if not k.startswith(PREFIX)}
    expected = {k: v.shape for k, v in model.state_dict().items()}
    if shapes != expected:
        other = sorted(k for k in {*shapes, *expected} if shapes.get(k) != expected.get(k))
        raise ValueError(
            f"{weights}: expected the tensors of the config's {type(model).__name__}, found "
            f"{len(other)} that differ: {', '.join(other[:5])}{' ...' if len(other) > 5 else ''}"
        )
    log = logging.getLogger("fvcore.common.checkpoint")
    level = log.level
    try:
        # Detectron2 would warn that the tensors under "distillation." are unused. They are meant to
        # be.
        log.setLevel(logging.ERROR)
        DetectionCheckpointer(model).load(str(weights))
    finally:
        log.setLevel(level)
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of all parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def count_gflops(model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> float:
    """10^9 flops of one inference, counted by fvcore. A multiply-add counts as one flop.

    Args:
        inputs: a batch in Detectron2's format.
    """
    # Imported here because it is slow to import.
    from detectron2.utils.analysis import FlopCountAnalysis

    with _evaluation_mode(model):
        count = FlopCountAnalysis(model, inputs)
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return count.tracer_warnings("none").total() / 1e9


def measure_speed(
    models: Mapping[str, nn.Module],
    batches: Sequence[Sequence[Mapping[str, Any]]],
    *,
    rounds: int = 60,
    warm_up: int = 5,
) -> dict[str, float]:
    """Median time of one inference of each model, in milliseconds, including post-processing.

    The models take turns on the same batch, and each round begins with another model. Other work
    on the machine then slows all models equally, so the ratios of the times are more reliable than
    the times themselves.

    Args:
        batches: in Detectron2's format; the rounds go through them.
        rounds: number of measured inferences of each model.
        warm_up: number of inferences of each model that are not measured.
    """
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(_evaluation_mode(model))
        for i in range(warm_up + rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                _wait_for_gpu()
                start = time.perf_counter()
                models[name](batches[i % len(batches)])
                _wait_for_gpu()
                if i >= warm_up:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _Recorder:
    """Calls a detector and keeps its detections: image id -> Instances."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.detections: dict[Any, Any] = {}

    def __call__(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict]:
        outputs = self.model(inputs)
        for x, y in zip(inputs, outputs, strict=True):
            self.detections[x["image_id"]] = y["instances"].to("cpu")
        return outputs


def measure_accuracy(cfg, model: nn.Module) -> tuple[dict[str, float], dict[Any, Any]]:
    """Evaluate a detector by the evaluator of its config.

    Args:
        cfg: LazyConfig with `dataloader.test` and `dataloader.evaluator`.

    Returns:
        AP, AP50 and AP75 in percent (0 for a detector without any detections), and all detections
        by image id.
    """
    recorder = _Recorder(model)
    with _evaluation_mode(model), contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        box = evaluate(cfg, recorder)["bbox"]
    values = {key: float(box[key]) for key in ("AP", "AP50", "AP75")}
    return {k: 0.0 if math.isnan(v) else v for k, v in values.items()}, recorder.detections


def table(rows: Mapping[str, Figures]) -> str:
    """A table for the terminal with one row for each model."""
    from tabulate import tabulate

    head = ["", "AP", "AP50", "AP75", "parameters", "GFLOPs", "ms/image"]
    cells = [
        [name, *(f"{row[k]:.1f}" for k in ("AP", "AP50", "AP75")), f"{row['params']:,}",
         f"{row['gflops']:.3f}", f"{row['ms']:.1f}"]
        for name, row in rows.items()
    ]  # fmt: skip
    align = ["left"] + ["right"] * (len(head) - 1)
    return tabulate(cells, head, tablefmt="simple", disable_numparse=True, colalign=align)


def gap_sentence(teacher: float, alone: float, distilled: float) -> str:
    """A sentence that says which share of the gap to the teacher distillation closed.

    It also says when distillation made the student worse, and when there is no gap.

    Args:
        teacher, alone, distilled: AP in percent.
    """
    gap, gain = teacher - alone, distilled - alone
    figures = f"student alone {alone:.1f} AP, distilled {distilled:.1f}, teacher {teacher:.1f}"
    if gap <= 0:
        return (
            f"There is no gap to close: the teacher is not better than the student alone "
            f"({figures}; distillation changed the student by {gain:+.1f} AP)."
        )
    if gain < 0:
        return (
            f"Distillation widened the gap to the teacher by {-gain / gap:.0%}: {gain:+.1f} AP "
            f"({figures})."
        )
    closed = f"Distillation closed {gain / gap:.0%} of the gap to the teacher"
    return f"{closed}: {gain:+.1f} AP ({figures})."
