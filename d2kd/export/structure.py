"""Find what differs between two modules besides their weights: layers, thresholds, anchors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

__all__ = ["differences", "to_plain"]

TOLERANCE = 1e-6  # relative; numbers in fp32 have been written in seven digits
BASE = frozenset(vars(nn.Module()))  # hooks and the dicts of children, which each module has


def differences(expected: nn.Module, found: nn.Module, ignore: Sequence[str] = ()) -> Iterator[str]:
    """Compare two modules by their children, shapes of tensors, buffers and attributes.

    Values of parameters and of saved buffers are not compared, because a checkpoint replaces them.
    Buffers that no checkpoint has, such as anchors and pixel means, are compared.

    Args:
        expected, found: the modules.
        ignore: names of attributes that may differ.

    Yields:
        a clause for each difference, such as "head.bbox_pred.out_channels is 36, and becomes 12".
    """
    ours, theirs = dict(expected.named_modules()), dict(found.named_modules())
    for name, module in ours.items():
        if name not in theirs:
            yield f"{name} ({type(module).__name__}) is lost"
            continue
        other = theirs[name]
        if type(module) is not type(other):
            yield f"{name or 'it'} is {type(module).__name__}, and becomes {type(other).__name__}"
            continue
        before, after = _attributes(module, ignore), _attributes(other, ignore)
        for key in chain(before, (key for key in after if key not in before)):
            if not _equal(before.get(key), after.get(key)):
                path = f"{name}.{key}" if name else key
                yield f"{path} is {_show(before.get(key))}, and becomes {_show(after.get(key))}"
    for name, module in theirs.items():
        if name not in ours:
            yield f"{name} ({type(module).__name__}) is added"


def _attributes(module: nn.Module, ignore: Sequence[str]) -> dict[str, Any]:
    """Attributes that are no modules; shapes of what a checkpoint has, values of other buffers."""
    plain = {k: to_plain(v) for k, v in vars(module).items() if k not in BASE and k not in ignore}
    attributes = {k: v for k, v in plain.items() if not _has_modules(v)}
    for key, tensor in chain(module._parameters.items(), module._buffers.items()):
        saved = key not in module._non_persistent_buffers_set
        attributes[key] = list(tensor.shape) if saved and tensor is not None else tensor
    return attributes


def to_plain(value: Any) -> Any:
    """A value with lists and dicts in place of tuples and of OmegaConf's containers."""
    if isinstance(value, Mapping) or OmegaConf.is_dict(value):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) or OmegaConf.is_list(value):
        return [to_plain(v) for v in value]
    return value


def _has_modules(value: Any) -> bool:
    """Whether a value is, or holds, modules: they are compared under their own names."""
    if isinstance(value, list):
        return any(map(_has_modules, value))
    return isinstance(value, nn.Module)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=0)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=TOLERANCE)
    if type(a) is type(b) and _is_object(a):
        return _equal(to_plain(vars(a)), to_plain(vars(b)))
    return bool(a is b or a == b)


def _is_object(value: Any) -> bool:
    """Whether a value has attributes to compare, as a Matcher has, and is no function or class."""
    return (
        hasattr(value, "__dict__") and not inspect.isroutine(value) and not inspect.isclass(value)
    )


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        value = [float(f"{x:.7g}") for x in value.flatten().tolist()]
    elif _is_object(value):
        value = to_plain(vars(value))
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
