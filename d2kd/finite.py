"""Find losses and weights that are NaN or infinite, before they are saved."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from .files import open_to_replace

__all__ = ["LossWatch", "non_finite_names"]

_PENDING = 8  # batches that may wait for their losses; a GPU is seldom more than two behind
_NAMED = 8  # images that a message names


def non_finite_names(tensors: Any) -> list[str]:
    """Names of the tensors that have a NaN or an infinite value.

    The host waits for the device once, whatever the number of tensors.

    Args:
        tensors: nested dicts, lists and tuples with tensors and anything else, such as a
            state_dict.

    Returns:
        the names, with their keys joined by dots.
    """
    floats = [
        (name, x) for name, x in _tensors("", tensors) if x.is_floating_point() or x.is_complex()
    ]
    bad = []
    for device in {x.device for _, x in floats}:
        here = [(name, x) for name, x in floats if x.device == device]
        finite = torch.stack([torch.isfinite(x.detach()).all() for _, x in here]).tolist()
        bad += [name for (name, _), ok in zip(here, finite, strict=True) if not ok]
    return bad


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}".lstrip("."), item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(f"{name}.{i}".lstrip("."), item)


class _Step(NamedTuple):
    """The losses of a batch on their way to the host.

    Attributes:
        iteration: number of the step, from 0.
        names: of the losses.
        values: (losses,), on the CPU. They are there when `copied` has happened.
        copied: a CUDA event, or None.
        batch: what the data loader gave.
    """

    iteration: int
    names: list[str]
    values: Tensor
    copied: Any
    batch: Any

    def is_known(self) -> bool:
        return self.copied is None or self.copied.query()


class LossWatch:
    """Stops a run at the first loss that is NaN or infinite, and keeps its batch.

    The losses of each step are copied to the host in the background and looked at when they have
    arrived, a step or two later. The host never waits for the device in a step. `check` waits; call
    it before anything is saved.

    Args:
        folder: where the batch is kept; None to keep none.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._steps: deque[_Step] = deque()
        self._previous: Any = None

    def add(self, iteration: int, losses: Mapping[str, Tensor], batch: Any) -> None:
        """Note the losses of a batch, and look at those that have arrived.

        Args:
            iteration: number of the step, from 0.
            losses: name -> scalar.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
        """
        values = torch.stack([x.detach().float().reshape(()) for x in losses.values()])
        values, copied = self._copy(values)
        self._steps.append(_Step(iteration, list(losses), values, copied, batch))
        while self._steps and (self._steps[0].is_known() or len(self._steps) > _PENDING):
            self._look_at_the_oldest()

    @staticmethod
    def _copy(values: Tensor) -> tuple[Tensor, Any]:
        """Begin to copy values to the host; see `_Step` for what is returned."""
        if not values.is_cuda:
            return values.cpu(), None
        values = values.to("cpu", non_blocking=True)  # into pinned memory
        copied = torch.cuda.Event()
        copied.record()
        return values, copied

    def check(self) -> None:
        """Look at all losses, and wait for those that have not arrived.

        Raises:
            FloatingPointError: a loss is NaN or infinite.
        """
        while self._steps:
            self._look_at_the_oldest()

    def _look_at_the_oldest(self) -> None:
        step = self._steps.popleft()
        if step.copied is not None:
            step.copied.synchronize()
        values = dict(zip(step.names, step.values.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(self._message(step, values))
        self._previous = step.batch

    def _message(self, step: _Step, values: dict[str, float]) -> str:
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        found = ", ".join(f"{name} = {value}" for name, value in bad.items())
        lines = [
            f"iteration {step.iteration}: expected finite losses, found {found}. The images of "
            f"this batch: {', '.join(_names(step.batch)) or 'unknown'}."
        ]
        if len(bad) == len(values) and self._previous is not None:
            names = ", ".join(_names(self._previous))
            lines.append(
                f"No loss is finite, so the step before may have spoiled the weights. Its images: "
                f"{names or 'unknown'}."
            )
        if self.folder:
            name = f"non_finite_iteration{step.iteration}_rank{comm.get_rank()}.pt"
            path = os.path.join(self.folder, name)
            content = {
                "iteration": step.iteration,
                "losses": values,
                "batch": _plain(step.batch),
                "previous_batch": _plain(self._previous),
            }
            try:
                with open_to_replace(path) as f:
                    torch.save(content, f)
                lines.append(f"{path} has the batch and the one before, for torch.load.")
            except OSError as e:
                lines.append(f"The batch could not be kept: {e}")
        lines.append(
            "Nothing is saved; --resume continues from the last checkpoint. Look at the boxes of "
            "these images, lower optimizer.lr, lengthen the warm-up or set train.clip_grad_norm."
        )
        return "\n".join(lines)


def _names(batch: Any) -> list[str]:
    """File names of a batch's images, or their ids."""
    images = [x for x in batch if isinstance(x, Mapping)] if isinstance(batch, Sequence) else []
    names = [str(x.get("file_name", x.get("image_id", "without a name"))) for x in images]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return names[:_NAMED] + more


def _plain(value: Any) -> Any:
    """The value in types that `torch.load` reads with weights_only."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Instances):
        fields = {name: _plain(field) for name, field in value.get_fields().items()}
        return {"image_size": tuple(value.image_size), **fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(tensor := getattr(value, "tensor", None), Tensor):  # boxes, masks, keypoints
        return tensor.detach().cpu()
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)
