"""Losses by torch.compile."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Compiled"]

logger = logging.getLogger(__name__)


class Compiled:
    """A function that torch.compile takes over at its first call; where it cannot, the fallback.

    One compilation serves all sizes of maps, but for those of one cell or one image, which start
    another. There, and at the first call, some seconds to a minute are lost.

    Args:
        plain: function of tensors and numbers to a tensor or a tuple of them, written so that a
            compiler can fuse it.
        fallback: computes the same without a compiler.
    """

    def __init__(self, plain: Callable, fallback: Callable):
        self.plain, self.fallback = plain, fallback
        self.chosen: Callable | None = None

    def __call__(self, *args):
        if self.chosen is not None:
            return self.chosen(*args)
        logger.info("torch.compile takes %s", self.plain.__name__)
        try:
            compiled = torch.compile(self.plain, dynamic=True)
            # For the whole process, and read in each backward: `balance` goes backward twice, so
            # that the first time must not reuse what is saved for the second.
            if hasattr(torch._functorch.config, "donated_buffer"):
                torch._functorch.config.donated_buffer = False
            found = compiled(*args)
            _try_backward(found, args)
            self.chosen = compiled
        except Exception as error:  # whatever a machine's compiler may raise
            logger.warning(
                "torch.compile failed for %s, which runs without: %s: %s",
                self.plain.__name__,
                type(error).__name__,
                str(error).strip().partition("\n")[0],
            )
            self.chosen = self.fallback
            found = self.fallback(*args)
        return found


def _try_backward(found: Tensor | tuple, args: tuple) -> None:
    """It is compiled when it first runs, and may fail on its own."""
    found = [x for x in (found if isinstance(found, tuple) else [found]) if x.requires_grad]
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    if found:
        torch.autograd.grad(sum(x.sum() for x in found), leaves, retain_graph=True)
