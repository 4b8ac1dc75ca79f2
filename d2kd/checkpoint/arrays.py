"""Unpickle numpy arrays in plain containers, and nothing else.

Detectron2's model zoo keeps weights as pickles of numpy arrays. A pickle can call what it imports.
A list of harmless-looking imports is not enough: `numpy.dtype` and `numpy.core.multiarray.scalar`
together read memory at an address that the file chooses. No function of numpy is therefore called
with the file's arguments. Each import is replaced by a stand-in, which checks its arguments, and
the arrays are rebuilt from their bytes.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

__all__ = ["load_pickled_arrays"]

_DEPTH = 50  # containers in containers; checkpoints have about three
_LEAVES = (str, bytes, bytearray, bool, int, float, complex, type(None))


class _Function:
    """A stand-in for an imported function or class. A file can call it but not change it."""

    __slots__ = ("_function",)
    _function: Callable

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dtype:
    """A number's type: kind and size from the constructor, byte order from the state."""

    def __init__(self, name: Any, *_: Any):
        # Python 2 wrote the name as bytes.
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?[biufc]\d{1,2}", name):
            raise pickle.UnpicklingError(f"it has an array of {name!r}, not of numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it has an array of records, not of numbers")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array or a number: shape, type, order and bytes."""

    def __init__(self, value: np.ndarray | np.generic | None = None):
        self.value = value

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _rebuild(shape, dtype, "F" if is_fortran else "C", content)


def _rebuild(shape: Any, dtype: Any, order: str, content: Any) -> np.ndarray:
    """An array of native byte order from its bytes, which must be as many as the shape says."""
    if isinstance(content, str):  # Python 2's bytes, read as latin1
        content = content.encode("latin1")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("it has an array of objects, not of numbers")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"it has an array of the shape {shape}")
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise pickle.UnpicklingError(
            f"it has an array of the shape {shape} and the type {dtype.dtype} with {len(content)} "
            f"bytes"
        )
    flat = np.frombuffer(content, dtype.dtype)
    # astype copies, so that the array can be written to and does not depend on `content`.
    array = flat.astype(dtype.dtype.newbyteorder("="))
    return array.reshape(shape, order="F" if order == "F" else "C")


# A pickle can also set the state of what a function returns. Neither function therefore returns an
# object of numpy.


def _scalar(dtype: Any, content: Any) -> _Array:
    return _Array(_rebuild((1,), dtype, "C", content)[0])


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    return _Array(_rebuild(shape, dtype, order, content))


def _no_bytes() -> bytes:
    return b""


def _encode(text: Any, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes by {encoding!r}")
    return text.encode("latin1")


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What a pickle may import: (module, name) -> what it gets."""
    found: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _Function(_encode),
        ("__builtin__", "bytes"): _Function(_no_bytes),  # of empty arrays
        ("numpy", "dtype"): _Function(_Dtype),
        ("numpy", "ndarray"): "numpy.ndarray",  # only handed to _reconstruct
    }
    for core in ("core", "_core"):  # numpy 2 renamed it
        found[f"numpy.{core}.multiarray", "_reconstruct"] = _Function(lambda *_: _Array())
        found[f"numpy.{core}.multiarray", "scalar"] = _Function(_scalar)
        found[f"numpy.{core}.numeric", "_frombuffer"] = _Function(_from_buffer)
    return found


# The unpickler in Python: the one in C allocates any amount of memory that a damaged file asks for.
class _ArraysOnly(pickle._Unpickler):
    def __init__(self, file: BinaryIO):
        # latin1 keeps the bytes of files that Python 2 wrote.
        super().__init__(file, encoding="latin1")
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it imports {module}.{name}")
        return self._known[module, name]


def load_pickled_arrays(file: BinaryIO) -> Any:
    """Read a pickle of numpy arrays, numbers and strings in dicts, lists and tuples.

    Args:
        file: opened in binary mode.

    Returns:
        the content. Arrays are writable and of native byte order.

    Raises:
        pickle.UnpicklingError: the file is damaged, or has or imports anything else.
    """
    try:
        return _plain(_ArraysOnly(file).load(), {}, 0)
    except pickle.UnpicklingError:
        raise
    except Exception as e:  # a damaged or made-up pickle raises any kind of exception
        raise pickle.UnpicklingError(f"it is damaged ({type(e).__name__}: {e})") from e


def _plain(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """A copy of nested containers in which arrays stand in the place of their stand-ins."""
    if depth > _DEPTH:
        raise pickle.UnpicklingError(f"it has containers in each other, {_DEPTH} deep")
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if type(value) in _LEAVES:
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        copy: Any = type(value)()  # dict or OrderedDict
        seen[id(value)] = copy
        for key, item in value.items():
            copy[_plain(key, seen, depth + 1)] = _plain(item, seen, depth + 1)
        return copy
    if type(value) is list:
        seen[id(value)] = copy = []
        copy.extend(_plain(item, seen, depth + 1) for item in value)
        return copy
    if type(value) in (tuple, set, frozenset):
        return type(value)(_plain(item, seen, depth + 1) for item in value)
    raise pickle.UnpicklingError(f"it has a {type(value).__name__}")
