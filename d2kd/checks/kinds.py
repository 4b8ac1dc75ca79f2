"""Compare values with the annotations and defaults of the classes that they are for."""

from __future__ import annotations

import inspect
import math
import numbers
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..lazy import resolve_target
from ..values import check_flag, check_number, is_number

__all__ = ["check_kinds", "check_required", "check_value", "read_value"]


def read_value(section: Any, name: str, field: str) -> Any:
    """A value of a section, with an error that names the field where it has none."""
    try:
        if isinstance(section, DictConfig) and OmegaConf.is_missing(section, name):
            raise ValueError(f"{field}: expected a value, found none (???).")
        return section[name]
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"{field}: expected a value, found {message}") from error


# Fields of detectors, loaders and optimizers that often lack an annotation.
_RANGES: dict[str, dict[str, Any]] = {
    "num_classes": dict(least=1, whole=True),
    "total_batch_size": dict(least=1, whole=True),
    "batch_size": dict(least=1, whole=True),
    "num_workers": dict(whole=True),
    "test_score_thresh": dict(least=None, most=1),
    "test_nms_thresh": dict(most=1),
    "test_topk_candidates": dict(least=1, whole=True),
    "max_detections_per_image": dict(least=1, whole=True),
    "lr": {},
    "base_lr": {},
    "weight_decay": {},
    "momentum": {},
    "warmup_factor": {},
    "warmup_length": dict(most=1),
}


def check_kinds(path: str, node: DictConfig) -> None:
    """Compare the values of a node with the annotations and defaults of its target.

    A flag must be True or False, a number must be a number, and values of well-known names have
    ranges. What is not annotated, or annotated as another type, is not checked.

    Args:
        path: of the node, for messages.
        node: with `_target_`.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    target = resolve_target(node)
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(target).parameters
        hints = _hints(target)
    except (TypeError, ValueError):
        parameters, hints = {}, {}
    for name in map(str, node):
        if name == "_target_":
            continue
        field = f"{path}.{name}".lstrip(".")
        value = read_value(node, name, field)
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if value is None and default is None:
            continue
        if name in _RANGES and value is not None and not _is_object(value):
            check_number(field, value, **_RANGES[name])
        check_value(field, value, hints.get(name), default)


def check_required(path: str, node: DictConfig) -> None:
    """Check that a node has all fields that its target has no default for.

    Building the node would otherwise stop with Python's own TypeError, after the data were read.

    Args:
        path: of the node, for messages.
        node: with `_target_`.

    Raises:
        ValueError: the message names the field and what it can be.
    """
    target = resolve_target(node)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return
    for p in parameters:
        many = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if many or p.default is not p.empty or p.name in node:
            continue
        hint = _hints(target).get(p.name)
        expected = "a value" if hint in (None, Any) else _join(_alternatives(hint))
        raise ValueError(
            f"{path}.{p.name}: expected {expected}, found nothing. {target.__name__} has no "
            f"default for it."
        )


def _hints(target: Any) -> dict[str, Any]:
    # A class's own __init__ may pass fields on to its bases, see `d2kd.signature`.
    owners: list[Any] = [target]
    if inspect.isclass(target):
        owners = [vars(c)["__init__"] for c in reversed(target.__mro__) if "__init__" in vars(c)]
    hints: dict[str, Any] = {}
    for owner in owners:
        try:
            hints.update(typing.get_type_hints(owner))
        except Exception:  # an annotation names something that is not there at run time
            continue
    return hints


def _is_object(value: Any) -> bool:
    """Whether a value is none of those that a text file or a command line can have."""
    return not isinstance(value, (str, numbers.Number, bytes))


def check_value(field: str, value: Any, annotation: Any, default: Any) -> None:
    """Compare a value with the annotation of its field; None for no annotation, with its default.

    Raises:
        ValueError: the value is of another kind.
    """
    is_node = isinstance(value, DictConfig) and "_target_" in value
    if is_node or (value is not None and _is_object(value) and not OmegaConf.is_config(value)):
        return
    if annotation is not None:
        alternatives = list(_alternatives(annotation))
        if default is None:
            alternatives.append(type(None))  # many annotations leave this out
        if any(_fits(value, alternative) for alternative in alternatives):
            return
        if not OmegaConf.is_config(value) and value == default and type(value) is type(default):
            return
        raise ValueError(f"{field}: expected {_join(alternatives)}, found {_short(value)}.")
    # Without an annotation, only a default that is a flag or a number says something.
    if isinstance(default, bool):
        if value is not None:
            check_flag(field, value)
    elif isinstance(default, (int, float)) and isinstance(value, str):
        raise ValueError(f"{field}: expected a number as its default {default}, found {value!r}.")


def _alternatives(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for alternative in typing.get_args(annotation):
            yield from _alternatives(alternative)
    else:
        yield annotation


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value, a list or a dict fits an annotation without alternatives."""
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        infinite = isinstance(value, float) and math.isinf(value)
        return is_number(value) or infinite
    if kind is str:
        return isinstance(value, str)
    if kind is type(None):
        return value is None
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if not inspect.isclass(origin) or origin is object:
        return True  # Any, a type variable, a NewType
    if OmegaConf.is_config(value):
        return origin not in (torch.Tensor,)
    if isinstance(value, str):  # a path, a registered name, a list of letters
        return not issubclass(origin, (torch.Tensor, torch.nn.Module))
    return value is not None and (isinstance(value, origin) or _takes_numbers(origin))


def _takes_numbers(kind: type) -> bool:
    """Whether a class is an abstract one of numbers."""
    return issubclass(kind, numbers.Number)


def _join(alternatives: Iterable[Any]) -> str:
    return " or ".join(dict.fromkeys(map(_show, alternatives)))


def _show(kind: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
    if kind is type(None):
        return "None"
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
