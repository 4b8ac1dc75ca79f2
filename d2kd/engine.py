"""The training loop on top of Detectron2's engine: steps, schedules and exact resume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from fvcore.nn import sigmoid_focal_loss_jit
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .finite import LossWatch
from .frozen import predictions_in_fp32
from .plain_errors import plain_errors
from .resume import same_hyperparameters

__all__ = ["ExactResume", "ScheduleProgress", "Trainer"]


class Trainer(SimpleTrainer):
    """`SimpleTrainer` with mixed precision on any device, accumulation and gradient clipping.

    Args:
        model, optimizer: see `SimpleTrainer`. The `ExactResume` hook sets the data loader.
        amp_dtype: autocast precision, torch.bfloat16 or torch.float16 (with loss scaling); None
            for fp32.
        accumulate: number of batches in one step; their gradients are averaged.
        clip_grad_norm: limit of the L2 norm of the whole gradient; 0 for no limit.
        gather_period: the losses are averaged over this many steps and then recorded. Recording
            in each step would make the host wait for the device, and for all other processes.
        folder: where `LossWatch` keeps a batch whose loss is NaN or infinite; None to keep none.

    Raises:
        ValueError: `accumulate` or `clip_grad_norm` is out of its range.
        FloatingPointError: a loss, or the gradient to be clipped, is NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        accumulate: int = 1,
        clip_grad_norm: float = 0.0,
        gather_period: int = 1,
        folder: str | None = None,
    ) -> None:
        super().__init__(model, [], optimizer)
        if accumulate < 1:
            raise ValueError(f"train.accumulate: expected at least 1, found {accumulate}")
        if clip_grad_norm < 0:
            raise ValueError(f"train.clip_grad_norm: expected >= 0, found {clip_grad_norm}")
        self.amp_dtype = amp_dtype
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.gather_period = gather_period
        self._watch = LossWatch(folder)
        self._sums: dict[str, torch.Tensor] = {}
        self._data_time, self._steps = 0.0, 0
        self._device = next(model.parameters()).device.type
        if amp_dtype is not None and isinstance(_detector(model), DenseDetector):
            _detector(model).head.register_forward_hook(predictions_in_fp32)
        self._batches: Iterator = iter(())
        scaler = getattr(torch.amp, "GradScaler", None)  # torch < 2.3 has CUDA's only
        enabled = amp_dtype == torch.float16
        self._scaler = (
            scaler(self._device, enabled=enabled)
            if scaler
            else torch.cuda.amp.GradScaler(enabled=enabled)
        )

    def set_loader(self, data_loader: Iterable) -> None:
        """Take all following batches from this loader."""
        self.data_loader = data_loader
        self._batches = iter(data_loader)

    def train(self, start_iter: int, max_iter: int) -> None:
        with plain_errors("detectron2.engine.train_loop"):
            super().train(start_iter, max_iter)

    def run_step(self) -> None:
        assert self.model.training, "expected the model in training mode, found evaluation mode"
        data_time = 0.0
        mean: dict[str, torch.Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for i in range(self.accumulate):
            start = time.perf_counter()
            data = next(self._batches)
            data_time += time.perf_counter() - start
            with self._gradient_sync(last=i == self.accumulate - 1):
                with torch.autocast(
                    self._device, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
                ):
                    losses = self.model(data)
                self._watch.add(self.iter, losses, data)
                total = sum(losses.values()) / self.accumulate
                self._scaler.scale(total).backward()
            for name, loss in losses.items():
                mean[name] = mean.get(name, 0) + loss.detach() / self.accumulate
        if hasattr(self, "after_backward"):  # Detectron2 0.6 has no such hook
            self.after_backward()
        self._record(mean, data_time)
        if self.clip_grad_norm:
            self._scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)
            if not self._scaler.is_enabled():  # a scaler skips steps with infinite gradients
                self._watch.add(self.iter, {"norm of the gradient": norm}, data)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _record(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss
        self._data_time, self._steps = self._data_time + data_time, self._steps + 1
        if (self.iter + 1) % self.gather_period == 0 or self.iter + 1 == self.max_iter:
            self._watch.check()
            means = {name: total / self._steps for name, total in self._sums.items()}
            self._write_metrics(means, self._data_time / self._steps)
            self._sums, self._data_time, self._steps = {}, 0.0, 0

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager:
        # With accumulation, processes exchange gradients only once a step, after the last batch.
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def state_dict(self) -> dict:
        self._watch.check()
        state = super().state_dict()
        state["normalizers"] = _normalizers(self.model)
        if self._scaler.is_enabled():
            state["grad_scaler"] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        with same_hyperparameters(self.optimizer):
            super().load_state_dict(state_dict)
        _set_normalizers(self.model, state_dict.get("normalizers", {}))
        if self._scaler.is_enabled() and "grad_scaler" in state_dict:
            self._scaler.load_state_dict(state_dict["grad_scaler"])


def _unwrap(model: nn.Module) -> Any:
    """The model without DDP's wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _detector(model: nn.Module) -> Any:
    """The detector that is trained: of a distiller, its student."""
    model = _unwrap(model)
    return getattr(model, "student", model)


def _normalizers(model: nn.Module) -> dict[str, float]:
    """The running means by which Detectron2's dense detectors divide their losses.

    They are means of the number of positives, and plain attributes. Detectron2 does not save them,
    so that its resumed runs begin with other losses.
    """
    return {
        name: float(value)
        for name, value in vars(_detector(model)).items()
        if name.endswith("loss_normalizer") and isinstance(value, (int, float, torch.Tensor))
    }


def _set_normalizers(model: nn.Module, values: dict[str, float]) -> None:
    for name, value in values.items():
        setattr(_detector(model), name, value)


class ScheduleProgress(HookBase):
    """Tells a distiller which share of training is done. The methods' schedules depend on it."""

    def before_step(self) -> None:
        model = _unwrap(self.trainer.model)
        model.loss_weights.progress = self.trainer.iter / self.trainer.max_iter


class ExactResume(HookBase):
    """Makes a resumed run see the same data and random numbers as an uninterrupted run.

    It works with any data loader and any augmentation. Training is split into segments of `period`
    steps, from one checkpoint to the next. At the start of each segment, the hook seeds all random
    number generators from (seed, step, rank) and makes a new data loader that starts at this step.
    A run that resumes at a checkpoint does the same, and so gets the same batches.

    Args:
        loader: function from (step, seed) to a data loader that starts at this step, such as a
            `d2kd.data.train_loader.TrainLoader`.
        period: steps between checkpoints.
        seed: of the whole run. A negative one stands for a random seed, which is saved in the
            checkpoints.
    """

    def __init__(self, loader: Callable[[int, int], Iterable], period: int, seed: int = -1):
        self.loader = loader
        self.period = period
        self.seed = seed if seed >= 0 else comm.shared_random_seed()

    def before_train(self) -> None:
        # Detectron2's dense detectors compute the focal loss by TorchScript. Its first call in a
        # process rounds differently from all later calls. Make that call here, so that the first
        # step of a resumed run rounds like the same step of an uninterrupted run.
        x = torch.zeros(2, 2, requires_grad=True)
        for _ in range(3):
            sigmoid_focal_loss_jit(x, torch.ones(2, 2), 0.25, 2.0, "sum").backward()

    def before_step(self) -> None:
        step = self.trainer.iter
        if step != self.trainer.start_iter and step % self.period:
            return
        seed_all_rng((self.seed * 1_000_003 + step * 1_009 + comm.get_rank()) % 2**31)
        self.trainer.set_loader(self.loader(step, self.seed))
        # A checkpoint holds the normalizers of the first process only. All processes continue with
        # them, whether the run was resumed or not.
        _set_normalizers(self.trainer.model, comm.all_gather(_normalizers(self.trainer.model))[0])

    def state_dict(self) -> dict:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict) -> None:
        self.seed = state_dict["seed"]
