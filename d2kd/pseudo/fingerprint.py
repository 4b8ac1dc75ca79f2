"""Fingerprints by which two detectors, or two objects of a config, are recognized as equal.

The keys of raw caches contain these fingerprints. A change of this module makes all raw predictions
unusable: raise the schema of `d2kd.pseudo.label.open_cache` with it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "plain"]


def fingerprint(model: nn.Module) -> str:
    """sha256 of a detector as it is built and loaded. The kind of config does not matter.

    It covers the class of each module, the plain attributes of each module (strides, thresholds,
    sizes of anchors, ...) and the bytes of all parameters and buffers.
    """
    own = set(vars(nn.Module()))
    modules = {
        name: [_class_path(m), {k: plain(v) for k, v in vars(m).items() if k not in own}]
        for name, m in model.named_modules()
    }
    tensors = [*model.named_parameters(), *model.named_buffers()]
    everything = [modules, {name: plain(tensor) for name, tensor in tensors}]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def plain(value: Any, depth: int = 8) -> Any:
    """Describe an object for JSON, by its class and its attributes, recursively.

    Two objects with the same description behave the same. Arrays and tensors are described by
    dtype, shape and the sha256 of their content.

    Args:
        depth: how deep to describe attributes of attributes. An object below this depth is
            described by its class alone.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        array = torch.as_tensor(value).detach().cpu().contiguous().reshape(-1)
        content = hashlib.sha256(array.view(torch.uint8).numpy().tobytes()).hexdigest()
        return [str(array.dtype), list(value.shape), content]
    if isinstance(value, nn.Module) or depth == 0:
        return _class_path(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v, depth - 1) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [plain(v, depth - 1) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(plain(v, depth - 1), sort_keys=True) for v in value)
    if isinstance(value, functools.partial):
        return [plain(v, depth - 1) for v in (value.func, value.args, value.keywords)]
    if hasattr(value, "__qualname__"):  # a function or a class
        return f"{value.__module__}.{value.__qualname__}"
    return [_class_path(value), plain(getattr(value, "__dict__", {}), depth - 1)]


def _class_path(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
