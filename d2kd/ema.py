"""An exponential moving average (EMA) of the weights of a detector in training."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from .values import check_number

__all__ = ["EMA"]

logger = logging.getLogger(__name__)


class EMA(HookBase):
    """Averages the weights of a detector after each step.

    After n averaged steps, the average keeps min(decay, (1 + n) / (10 + n)) of itself in the next
    one. It therefore follows the detector closely at first, and does not remember its initial
    weights. Statistics of batch norms are averaged, too. Other buffers are copied if they are not
    floating point, or if they hold an infinite value on purpose.

    The average is part of the trainer's state, so that a resumed run continues it exactly. Register
    this hook before the one that saves checkpoints.

    Args:
        detector: of a distiller, its student. It must be on its device.
        decay: the largest share that the average keeps in a step, in (0, 1).

    Attributes:
        model: a copy of the detector with the averaged weights, in evaluation mode.
        updates: number of steps that were averaged.

    Raises:
        ValueError: `decay` is out of its range.
    """

    def __init__(self, detector: nn.Module, decay: float):
        check_number("train.ema.decay", decay, above=0, below=1)
        self.decay = decay
        self.updates = 0
        self._detector = detector
        # Any, because nn.Module declares no attribute of Detectron2's detectors.
        self.model: Any = copy.deepcopy(detector).eval().requires_grad_(False)
        current, own = _tensors(detector), _tensors(self.model)
        self._averages = {
            name: own[name]
            for name, x in current.items()
            if x.is_floating_point() and bool(torch.isfinite(x).all())
        }
        # Pairs of a tensor of the average and the detector's tensor of the same name.
        self._averaged = [(x, current[name]) for name, x in self._averages.items()]
        self._copied = [(own[n], x) for n, x in current.items() if n not in self._averages]

    def before_train(self) -> None:
        if not self.updates:  # the detector may have loaded weights since it was copied
            if self.trainer.start_iter:
                logger.warning(
                    "train.ema: the checkpoint has no average of the weights. It begins with the "
                    "weights of step %d.",
                    self.trainer.start_iter,
                )
            self._average(0.0)
        self._copy_others()

    def after_step(self) -> None:
        self._average(min(self.decay, (1 + self.updates) / (10 + self.updates)))
        self._copy_others()
        self.updates += 1

    @torch.no_grad()
    def _average(self, kept: float) -> None:
        for average, current in self._averaged:
            if kept:
                average.lerp_(current, 1 - kept)
            else:
                average.copy_(current)

    @torch.no_grad()
    def _copy_others(self) -> None:
        for own, current in self._copied:
            own.copy_(current)

    def synchronize(self) -> None:
        """Give all processes the buffers of the first one: of the detector and of its average.

        Each process has its own statistics of batch norms, and a checkpoint holds those of the
        first process only. Where the average labels images, a resumed run needs equal ones.
        """
        if comm.get_world_size() > 1:
            for buffer in (*self._detector.buffers(), *self.model.buffers()):
                torch.distributed.broadcast(buffer, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "decay": self.decay, "tensors": self._averages}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is one of another detector.
        """
        saved, own = state_dict["tensors"], self._averages
        if differing := sorted(
            {*saved} ^ {*own} or {n for n in own if own[n].shape != saved[n].shape}
        ):
            raise ValueError(
                f"train.ema: expected an average of this config's detector in the checkpoint, "
                f"found another one ({', '.join(differing[:3])} differ). Give the config that the "
                f"run began with, or another train.output_dir for a new run."
            )
        if state_dict.get("decay", self.decay) != self.decay:
            logger.warning(
                "--resume: the run began with train.ema.decay=%g, the config has %g. The average "
                "follows the new value from here.",
                state_dict["decay"],
                self.decay,
            )
        for name, average in own.items():
            average.copy_(saved[name])
        self.updates = state_dict["updates"]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
