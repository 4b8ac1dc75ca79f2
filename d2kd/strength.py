"""How strong each method is beside the task: schedules, balances, and what the log says of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from .balance import gradient_norms

__all__ = ["Strength"]

logger = logging.getLogger(__name__)

# A method is said to drown the task at this ratio of their gradients (where they are measured, else
# of their losses), in so many records in a row: at the start of training, before the student
# resembles its teacher at all, high ratios are usual.
_DROWNS, _DROWNS_FOR = 10, 10


class Strength:
    """What the losses of some methods are multiplied by.

    Args:
        methods: by name; see `d2kd.methods.Method`.
        log_period, balance_period: see `d2kd.Distiller`.

    Attributes:
        progress: done share of training in [0, 1), for schedules; `d2kd.engine.Progress` sets it.
    """

    def __init__(
        self, methods: Mapping[str, nn.Module], log_period: int = 20, balance_period: int = 20
    ):
        for name, period in dict(log_period=log_period, balance_period=balance_period).items():
            if period < 1 or period != int(period):
                raise ValueError(f"Distiller.{name}: expected a whole number >= 1, found {period}")
        self.methods = methods
        self.log_period, self.balance_period = log_period, balance_period
        self.progress: float | None = None
        self._drowned = dict.fromkeys(methods, 0)
        # Each method's gradient at the neck over the task's, as trained with, where measured.
        self._gradients: dict[str, Tensor] = {}
        self._calls = 0
        self._last: int | None = None
        for name, method in methods.items():
            if method.balance is not None:
                logger.info(
                    "Method %s: its gradient is balanced at %g of the task's; its weight %g is not "
                    "used.",
                    *(name, method.balance.fraction, method.weight),
                )

    def scheduled(self) -> dict[str, float]:
        """Method name -> what its schedule says now.

        Raises:
            RuntimeError: nobody has said how much of training is done.
            ValueError: a schedule that says anything but a number >= 0.
        """
        found = {}
        for name, method in self.methods.items():
            if method.schedule is None:
                found[name] = 1.0
                continue
            if self.progress is None:
                raise RuntimeError(
                    f"methods.{name}.schedule: expected to know how much of training is done. Add "
                    f"d2kd.engine.Progress() to the trainer's hooks, as train_net.py does, or set "
                    f"`strength.progress` of the distiller before each step."
                )
            value = method.schedule(self.progress)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(
                    f"methods.{name}.schedule: expected a factor >= 0 at {self.progress:.3f} of "
                    f"training, found {value!r}"
                )
            found[name] = float(value)
        return found

    def weigh(
        self,
        scheduled: Mapping[str, float],
        task: Tensor,
        terms: Mapping[str, Mapping[str, Tensor]],
        neck: list[Tensor],
    ) -> dict[str, Tensor]:
        """The methods' losses, multiplied by their schedule and their weight or balance.

        Now and then this measures gradients, and writes to Detectron2's storage.

        Args:
            scheduled: see there.
            task: the sum of the student's own losses.
            terms: of each method that does not rest, term name -> loss.
            neck: the student's maps, (N, C, H, W) each.

        Returns:
            method name -> loss, also of those that rest.
        """
        try:
            storage = get_event_storage()
        except AssertionError:  # outside a trainer
            storage = None
        step = self._calls if storage is None else storage.iter
        first = step != self._last  # of several batches that make one step
        self._calls, self._last = self._calls + 1, step
        raw = {name: sum(values.values()) for name, values in terms.items()}
        if first:
            self._measure(step, scheduled, task, raw, neck)
        weighted = {
            name: scheduled[name] * self._own(name) * raw[name]
            if name in raw
            else _nothing(method, task)
            for name, method in self.methods.items()
        }
        if first and storage is not None and not step % self.log_period:
            self._record(storage, task, terms, weighted)
        return weighted

    def _own(self, name: str) -> float | Tensor:
        method = self.methods[name]
        return method.weight if method.balance is None else method.balance()

    def _measure(
        self,
        step: int,
        scheduled: Mapping[str, float],
        task: Tensor,
        raw: Mapping[str, Tensor],
        neck: list[Tensor],
    ) -> None:
        """Tell the balances the norms of the gradients, when it is time."""
        balances = {name: m.balance for name, m in self.methods.items() if m.balance is not None}
        for name in balances.keys() - raw.keys():
            balances.pop(name).reset()  # what it knows will be out of date when it wakes
        due = not step % self.balance_period or any(b.unsettled for b in balances.values())
        if not balances or not due:
            return
        norms = gradient_norms([task, *raw.values()], neck)
        ratios = norms[1:] / norms[0].clamp(min=1e-30)
        for name, norm, ratio in zip(raw, norms[1:], ratios, strict=True):
            before = self._own(name)
            if name in balances:
                balances[name].update(norms[0], norm)
                # What the last steps were trained with, not what this measurement makes of it.
                before = torch.where(before > 0, before, balances[name]())
            self._gradients[name] = scheduled[name] * before * ratio

    @torch.no_grad()
    def _record(
        self,
        storage,
        task: Tensor,
        terms: Mapping[str, Mapping[str, Tensor]],
        weighted: Mapping[str, Tensor],
    ) -> None:
        """Put each term and each method's ratio to the task into the storage.

        Not in every step: reading a number makes a GPU wait.
        """
        task = task.item()
        for name, values in terms.items():
            scalars = {term: value.item() for term, value in values.items()}
            scalars["raw"] = sum(scalars.values())
            scalars["weighted"] = weighted[name].item()
            scalars["ratio"] = ratio = scalars["weighted"] / max(task, 1e-12)
            what = "loss"
            if name in self._gradients:
                scalars["gradient_ratio"] = ratio = self._gradients[name].item()
                what = "gradient at the neck"
            self._drowned[name] = self._drowned[name] + 1 if ratio > _DROWNS else 0
            if self._drowned[name] == _DROWNS_FOR:
                lower = "weight" if self.methods[name].balance is None else "balance"
                logger.warning(
                    "Method %s: its %s is %.0f times the student's own. Lower its %s, unless it "
                    "falls soon.",
                    *(name, what, ratio, lower),
                )
            storage.put_scalars(
                smoothing_hint=False,
                **{f"distill/{name}/{term}": value for term, value in scalars.items()},
            )


def _nothing(method: nn.Module, like: Tensor) -> Tensor:
    # Processes wait for a gradient of each parameter, also of those that rest.
    return sum((p.sum() * 0 for p in method.parameters() if p.requires_grad), like.new_zeros(()))
