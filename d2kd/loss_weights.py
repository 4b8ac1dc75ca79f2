"""The weight of each method's loss: its schedule, its constant weight or gradient balance, its log.

Published weights belong to the data and the detectors that they were tuned on, and do not transfer
to others. `GradientBalance` measures gradients instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from .values import check_number, is_number

__all__ = ["GradientBalance", "LossWeights", "gradient_norms"]

logger = logging.getLogger(__name__)

# In fp16 a gradient at the neck is often smaller than the smallest fp16 number.
_GRADIENT_SCALE = 1024.0
# A method is reported as too strong when its gradient (or its loss, where gradients are not
# measured) exceeds the student's by one of these factors in as many consecutive records. A single
# high ratio is usual at the start of training, when student and teacher still differ everywhere.
# A ratio above 50 is reported after two records, because a short run does not have ten.
_TOO_STRONG = {50: 2, 10: 10}


class GradientBalance(nn.Module):
    """The factor that keeps a method's gradient at a fixed fraction of the task's gradient.

    Both norms are measured every few steps at the student's neck, which the task and all methods
    share, and go into exponential moving averages. The factor is a tensor on the loss's device and
    is never read by the host, so a GPU does not wait. The averages are saved in the checkpoint,
    so that resuming is exact.

    Args:
        fraction: norm of the method's gradient over the norm of the task's gradient, > 0.
        momentum: weight of the old average in the new one, in [0, 1).
        warmup: number of measurements that are made in consecutive steps when training begins, or
            when the method starts again after a pause. Gradients change most in these steps, and
            the first one may be far from typical.
    """

    task: Tensor
    method: Tensor

    def __init__(self, fraction: float, momentum: float = 0.7, warmup: int = 20):
        super().__init__()
        self.fraction = float(check_number("GradientBalance.fraction", fraction, above=0))
        self.momentum = check_number("GradientBalance.momentum", momentum, below=1)
        self.warmup = check_number("GradientBalance.warmup", warmup, whole=True)
        self.register_buffer("task", torch.zeros(()))
        self.register_buffer("method", torch.zeros(()))
        self._warmup_left = warmup

    def extra_repr(self) -> str:
        return f"fraction={self.fraction}"

    @property
    def warming_up(self) -> bool:
        """Whether to measure in every step."""
        return self._warmup_left > 0

    def reset(self) -> None:
        """Forget all measurements."""
        if self._warmup_left < self.warmup:
            self.task.zero_()
            self.method.zero_()
            self._warmup_left = self.warmup

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._warmup_left)

    def set_extra_state(self, state: Tensor) -> None:
        self._warmup_left = int(state)

    @torch.no_grad()
    def update(self, task: Tensor, method: Tensor) -> None:
        """Add one measurement to the averages.

        Args:
            task, method: scalars, norms of the task's gradient and of the method's gradient without
                its weight.
        """
        self._warmup_left = max(self._warmup_left - 1, 0)
        # Skip measurements that are inf, NaN or zero. One overflow would corrupt the averages
        # forever. A batch without boxes gives LD no gradient, and a batch without labels gives the
        # task none: averaged in, such a zero would make the factor of the next batch explode.
        valid = torch.isfinite(task) & torch.isfinite(method) & (task > 0) & (method > 1e-6 * task)
        for average, new in ((self.task, task), (self.method, method)):
            updated = self.momentum * average + (1 - self.momentum) * new
            average.copy_(torch.where(valid, updated, average))

    def forward(self) -> Tensor:
        """The factor for the method's unweighted loss; 0 before the first measurement."""
        # Both averages start at 0. The bias is the same in both and cancels in the ratio.
        return self.fraction * self.task / self.method.clamp(min=1e-30)


def gradient_norms(losses: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """L2 norm of each loss's gradient with respect to all maps together.

    With several processes, each gets the root of the mean of the squared norms, so that all of them
    use the same factor.

    Args:
        losses: M scalars. Their graphs are kept for the backward pass that follows.
        maps: the student's neck, (N, C, H, W) each.

    Returns:
        (M,) fp32; 0 where a loss does not depend on the maps.

    Raises:
        ValueError: no map carries a gradient.
    """
    maps = [x for x in maps if x.requires_grad]
    if not maps:
        raise ValueError(
            "balance: expected a neck that trains, found that none of its maps carries a gradient. "
            "Use weight instead of balance."
        )
    squares = []
    for loss in losses:
        square = torch.zeros((), device=loss.device)
        if loss.requires_grad:
            grads = torch.autograd.grad(
                _GRADIENT_SCALE * loss, maps, retain_graph=True, allow_unused=True
            )
            for grad in grads:
                if grad is not None:
                    grad = grad.float() / _GRADIENT_SCALE
                    square = square + torch.linalg.vector_norm(grad).square()
        squares.append(square)
    stacked = torch.stack(squares)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(stacked)
        stacked /= comm.get_world_size()
    return stacked.sqrt()


class LossWeights:
    """Multiplies the losses of several methods by their schedule and their weight or balance.

    Args:
        methods: by name; see `d2kd.methods.Method`.
        log_period, balance_period: see `d2kd.Distiller`.

    Attributes:
        progress: finished share of training in [0, 1), which schedules depend on;
            `d2kd.engine.ScheduleProgress` sets it before each step.
    """

    def __init__(self, methods: Mapping[str, Any], log_period: int = 20, balance_period: int = 20):
        for name, period in dict(log_period=log_period, balance_period=balance_period).items():
            check_number(f"Distiller.{name}", period, least=1, whole=True)
        self.methods = methods
        self.log_period, self.balance_period = log_period, balance_period
        self.progress: float | None = None
        # How many consecutive records of each method were above each factor; what has been said.
        self._too_strong = {name: dict.fromkeys(_TOO_STRONG, 0) for name in methods}
        self._warned: set[str] = set()
        # The latest measured ratio of each method's weighted gradient to the task's gradient.
        self._gradient_ratios: dict[str, Tensor] = {}
        self._calls = 0
        self._last_step: int | None = None
        for name, method in methods.items():
            if method.balance is not None:
                logger.info(
                    "Method %s: its gradient is balanced at %g of the task's; its weight %g is not "
                    "used.",
                    *(name, method.balance.fraction, method.weight),
                )

    def schedule_factors(self) -> dict[str, float]:
        """Method name -> the present value of its schedule; 1 for a method without a schedule.

        Raises:
            RuntimeError: `progress` was not set.
            ValueError: a schedule returned something else than a number >= 0.
        """
        factors = {}
        for name, method in self.methods.items():
            if method.schedule is None:
                factors[name] = 1.0
                continue
            if self.progress is None:
                raise RuntimeError(
                    f"methods.{name}.schedule: expected to know how much of training is done. Add "
                    f"d2kd.engine.ScheduleProgress() to the trainer's hooks, as train_net.py does, "
                    f"or set `loss_weights.progress` of the distiller before each step."
                )
            value = method.schedule(self.progress)
            if not is_number(value) or value < 0:
                raise ValueError(
                    f"methods.{name}.schedule: expected a factor >= 0 at {self.progress:.3f} of "
                    f"training, found {value!r}"
                )
            factors[name] = float(value)
        return factors

    def weigh(
        self,
        schedule_factors: Mapping[str, float],
        task: Tensor,
        terms: Mapping[str, Mapping[str, Tensor]],
        neck: list[Tensor],
    ) -> dict[str, Tensor]:
        """Multiply each method's loss by its schedule factor and its weight or balance.

        Every `balance_period` steps this measures gradients, and every `log_period` steps it writes
        to Detectron2's event storage.

        Args:
            schedule_factors: from the function of that name.
            task: the sum of the student's own losses.
            terms: method name -> term name -> loss, without the methods that their schedule pauses.
            neck: the student's maps, (N, C, H, W) each.

        Returns:
            method name -> weighted loss; zero for paused methods.
        """
        try:
            storage = get_event_storage()
        except AssertionError:  # outside a trainer
            storage = None
        step = self._calls if storage is None else storage.iter
        # With gradient accumulation, several batches make one step: use the first one.
        first_batch = step != self._last_step
        self._calls, self._last_step = self._calls + 1, step
        raw: dict[str, Any] = {name: sum(values.values()) for name, values in terms.items()}
        if first_batch:
            self._measure(step, schedule_factors, task, raw, neck)
        weighted: dict[str, Any] = {
            name: schedule_factors[name] * self._factor(name) * raw[name]
            if name in raw
            else _zero_loss(method, task)
            for name, method in self.methods.items()
        }
        if first_batch and storage is not None and not step % self.log_period:
            self._record(storage, task, terms, weighted)
        return weighted

    def _factor(self, name: str) -> Any:
        """The method's weight, a number, or the factor of its balance, a scalar tensor."""
        method = self.methods[name]
        return method.weight if method.balance is None else method.balance()

    def _measure(
        self,
        step: int,
        schedule_factors: Mapping[str, float],
        task: Tensor,
        raw: Mapping[str, Any],
        neck: list[Tensor],
    ) -> None:
        """Measure the gradients and update the balances, if a measurement is due in this step."""
        balances = {name: m.balance for name, m in self.methods.items() if m.balance is not None}
        for name in balances.keys() - raw.keys():
            # This method is paused. Its averages will be out of date when it starts again.
            balances.pop(name).reset()
        due = not step % self.balance_period or any(b.warming_up for b in balances.values())
        if not balances or not due:
            return
        norms = gradient_norms([task, *raw.values()], neck)
        ratios = norms[1:] / norms[0].clamp(min=1e-30)
        for name, norm, ratio in zip(raw, norms[1:], ratios, strict=True):
            factor = self._factor(name)
            if name in balances:
                balances[name].update(norms[0], norm)
                # Record the factor of the last steps, not the one that this measurement gives.
                factor = torch.where(factor > 0, factor, balances[name]())
            self._gradient_ratios[name] = schedule_factors[name] * factor * ratio

    @torch.no_grad()
    def _record(
        self,
        storage: EventStorage,
        task: Tensor,
        terms: Mapping[str, Mapping[str, Tensor]],
        weighted: Mapping[str, Tensor],
    ) -> None:
        """Put each term, and each method's ratio to the task, into the storage.

        This is not done in every step, because a GPU waits when the host reads a number.
        """
        task_loss = task.item()
        for name, values in terms.items():
            scalars = {term: value.item() for term, value in values.items()}
            scalars["raw"] = sum(scalars.values())
            scalars["weighted"] = weighted[name].item()
            scalars["ratio"] = ratio = scalars["weighted"] / max(task_loss, 1e-12)
            quantity = "loss"
            if name in self._gradient_ratios:
                scalars["gradient_ratio"] = ratio = self._gradient_ratios[name].item()
                quantity = "gradient at the neck"
            self._warn_if_too_strong(name, quantity, ratio)
            storage.put_scalars(
                smoothing_hint=False,
                **{f"distill/{name}/{term}": value for term, value in scalars.items()},
            )

    def _warn_if_too_strong(self, name: str, quantity: str, ratio: float) -> None:
        counts = self._too_strong[name]
        for factor in counts:
            counts[factor] = counts[factor] + 1 if ratio > factor else 0
        if name in self._warned or all(counts[x] < _TOO_STRONG[x] for x in counts):
            return
        self._warned.add(name)
        field = f"model.methods.{name}"
        fix = (
            f"Set {field}.balance=1.0, which measures the factor, or lower {field}.weight"
            if self.methods[name].balance is None
            else f"Lower {field}.balance"
        )
        logger.warning(
            "Method %s: its %s is %.0f times the student's own. %s, unless the ratio falls soon.",
            *(name, quantity, ratio, fix),
        )


def _zero_loss(method: nn.Module, like: Tensor) -> Tensor:
    """A zero that depends on all of the method's parameters.

    DDP waits for a gradient of every parameter, also of a paused method.
    """
    zero = like.new_zeros(())
    return sum((p.sum() * 0 for p in method.parameters() if p.requires_grad), zero)
