"""Find operations that make the host wait for a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Record operations that read a value, or whose result has a shape that depends on a value.

    They are listed in `found`.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in _READS or (name in _INDEXES and _by_mask(args[1])):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


_READS = ("_local_scalar_dense", "allclose", "equal", "nonzero", "masked_select")
_INDEXES = ("index", "index_put", "index_put_")


def _by_mask(indices) -> bool:
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
