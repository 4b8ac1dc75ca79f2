"""Weights that follow the gradients: published ones do not transfer to other data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.utils import comm
from torch import Tensor, nn

__all__ = ["Balance", "gradient_norms"]

# In fp16 a gradient at the neck is often below the smallest number there is.
_SCALE = 1024.0


class Balance(nn.Module):
    """The factor that holds a method's gradient at a fraction of the task's, on average.

    Both norms are measured now and then at the student's neck, where all methods and the task meet,
    and averaged with exponentially falling weights. The factor is a tensor on the loss's device,
    never a number: no GPU waits for it. The averages are saved, so that resuming is exact.

    Args:
        fraction: norm of the method's gradient over that of the task's, > 0.
        momentum: weight of the past in the averages, in [0, 1).
        settling: so many measurements are made one step after the other, when training begins or
            the method wakes: gradients change most then, and the first may be far from typical.
    """

    def __init__(self, fraction: float, momentum: float = 0.7, settling: int = 20):
        super().__init__()
        self.fraction = float(fraction)
        self.momentum = momentum
        self.settling = settling
        self.register_buffer("task", torch.zeros(()))
        self.register_buffer("method", torch.zeros(()))
        self._left = settling

    def extra_repr(self) -> str:
        return f"fraction={self.fraction}"

    @property
    def unsettled(self) -> bool:
        """Whether to measure in each step."""
        return self._left > 0

    def reset(self) -> None:
        """Forget all measurements."""
        if self._left < self.settling:
            self.task.zero_()
            self.method.zero_()
            self._left = self.settling

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._left)

    def set_extra_state(self, state: Tensor) -> None:
        self._left = int(state)

    @torch.no_grad()
    def update(self, task: Tensor, method: Tensor) -> None:
        """Take one measurement: norms of the task's and of the method's unweighted gradient."""
        self._left = max(self._left - 1, 0)
        # An overflow must not stay in the averages. And a batch in which the method has no gradient
        # (no boxes for LD, a student that still is its teacher), or the task (no labels), says
        # nothing: taken for a measurement, it would let the next batch's explode.
        sound = torch.isfinite(task) & torch.isfinite(method) & (task > 0) & (method > 1e-6 * task)
        for mean, new in ((self.task, task), (self.method, method)):
            moved = self.momentum * mean + (1 - self.momentum) * new
            mean.copy_(torch.where(sound, moved, mean))

    def forward(self) -> Tensor:
        """The factor for the method's unweighted loss; 0 before the first measurement."""
        # Both averages started at 0, which cancels.
        return self.fraction * self.task / self.method.clamp(min=1e-30)


def gradient_norms(losses: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """L2 norm of each loss's gradient with respect to all maps together.

    Several processes get the mean of theirs (of the squares), so that they agree.

    Args:
        losses: M scalars. Their graphs stay.
        maps: the student's neck, (N, C, H, W) each.

    Returns:
        (M,) fp32; 0 where a loss has no path to the maps.

    Raises:
        ValueError: no map carries a gradient.
    """
    maps = [x for x in maps if x.requires_grad]
    if not maps:
        raise ValueError(
            "balance: expected a neck that trains, found none of its maps with a gradient. Use "
            "weight in place of balance."
        )
    squares = []
    for loss in losses:
        square = torch.zeros((), device=loss.device)
        if loss.requires_grad:
            grads = torch.autograd.grad(_SCALE * loss, maps, retain_graph=True, allow_unused=True)
            for grad in grads:
                if grad is not None:
                    square = square + torch.linalg.vector_norm(grad.float() / _SCALE).square()
        squares.append(square)
    squares = torch.stack(squares)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(squares)
        squares /= comm.get_world_size()
    return squares.sqrt()
