"""Losses by torch.compile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Compiled"]

logger = logging.getLogger(__name__)


class Compiled:
    """A function that torch.compile takes over at its first call; where it cannot, the fallback.

    Sizes share compilations, but for batches of one image, maps of one cell, other layouts and a
    few more: some are made in the first steps, seconds each. What fails in a forward call, at any
    size, or goes beyond PyTorch's limit of compilations (8 of a function), ends it with a warning:
    from then on the fallback runs. Of backward passes the first one is tried.

    Args:
        plain: function of tensors and numbers to a tensor or a tuple of them, written so that a
            compiler can fuse it.
        fallback: computes the same without a compiler.
    """

    def __init__(self, plain: Callable, fallback: Callable):
        self.plain, self.fallback = plain, fallback
        self.compiled: Callable | None = None
        self.backward_works = False
        self.failed = False

    def __getstate__(self) -> dict[str, Any]:
        """What is compiled cannot be pickled, and is made anew."""
        return dict(self.__dict__, compiled=None, backward_works=False)

    def __call__(self, *args):
        if self.failed:
            return self.fallback(*args)
        try:
            if self.compiled is None:
                logger.info("torch.compile takes %s", self.plain.__name__)
                self.compiled = _compile(self.plain)
            found = self.compiled(*args)
            if not self.backward_works:
                self.backward_works = _try_backward(found, args)
            return found
        except Exception as error:  # whatever a machine's compiler may raise
            logger.warning(
                "torch.compile failed for %s, which runs without: %s: %s",
                self.plain.__name__,
                type(error).__name__,
                str(error).strip().partition("\n")[0],
            )
            self.failed = True
            return self.fallback(*args)


def _compile(function: Callable) -> Callable:
    # As a full graph, it fails at the limit of compilations, and does not run uncompiled.
    compiled = torch.compile(function, dynamic=True, fullgraph=True)
    # For the whole process, and read in each backward: `balance` goes backward twice, so that the
    # first time must not reuse what is saved for the second.
    if hasattr(torch._functorch.config, "donated_buffer"):
        torch._functorch.config.donated_buffer = False
    return compiled


def _try_backward(found: Tensor | tuple, args: tuple) -> bool:
    """Whether there was one to try. It is compiled when it first runs, and may fail on its own."""
    found = [x for x in (found if isinstance(found, tuple) else [found]) if x.requires_grad]
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    if found:
        torch.autograd.grad(sum(x.sum() for x in found), leaves, retain_graph=True)
    return bool(found)
