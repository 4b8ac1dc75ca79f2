"""Telling whether two detectors are the same."""

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
    """sha256 of a detector as it is built and loaded, whatever kind of config it came from.

    Of each module: its class, its plain attributes (strides, thresholds, anchors' sizes, ...) and
    the bytes of its tensors.
    """
    own = set(vars(nn.Module()))
    modules = {
        name: [_kind(m), {k: plain(v) for k, v in vars(m).items() if k not in own}]
        for name, m in model.named_modules()
    }
    tensors = [*model.named_parameters(), *model.named_buffers()]
    everything = [modules, {name: plain(tensor) for name, tensor in tensors}]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def plain(value: Any, depth: int = 8) -> Any:
    """What tells an object from others of its kind, for JSON: its class and attributes, and theirs.

    Args:
        depth: of attributes of attributes; of what lies deeper only the class is told.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        array = torch.as_tensor(value).detach().cpu().contiguous().reshape(-1)
        content = hashlib.sha256(array.view(torch.uint8).numpy()).hexdigest()
        return [str(array.dtype), list(value.shape), content]
    if isinstance(value, nn.Module) or depth == 0:
        return _kind(value)
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
    return [_kind(value), plain(getattr(value, "__dict__", {}), depth - 1)]


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
