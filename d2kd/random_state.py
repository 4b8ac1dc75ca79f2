"""Do something during a training that must not change its random numbers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

__all__ = ["keep_random_state"]


@contextlib.contextmanager
def keep_random_state() -> Iterator[None]:
    """Give Python, NumPy and PyTorch the state back that their generators had before the block.

    This includes the generator of the current GPU.
    """
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
