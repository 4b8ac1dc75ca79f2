"""Find operations that make the host wait for a GPU."""

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Record operations that read a value, or whose result has a shape that depends on a value.

    They are listed in `found`.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select"):
            self.found.append(func)
        return func(*args, **(kwargs or {}))
