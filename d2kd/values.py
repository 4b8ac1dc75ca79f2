"""Check single values: numbers and their ranges, switches, choices. This needs no PyTorch.

All functions return the value, or raise an error that names the field, what was expected and what
was found.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch

__all__ = [
    "check_choice",
    "check_coefficients",
    "check_device",
    "check_flag",
    "check_number",
    "is_number",
]


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number. True and False are none, although Python adds them.

    Numbers of numpy are numbers; tensors and strings are not.
    """
    if not isinstance(value, numbers.Real) or _is_bool(value):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def check_number(
    field: str,
    value: Any,
    *,
    least: float | None = 0,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
    other: str = "",
) -> Any:
    """Check that a value is a finite number in a range.

    Args:
        field: name for the message, such as "train.log_period".
        value: what was found.
        least, most: smallest and largest value that is allowed; None for no limit.
        above, below: limits that are not allowed themselves. `above` replaces `least`.
        whole: whether it must be an integer. A float such as 4.0 is none.
        other: what else is allowed, such as "None", for the message; the caller checks it.

    Raises:
        ValueError: the value is something else.
    """
    least = None if above is not None else least
    fits = (
        is_number(value)
        and (not whole or isinstance(value, numbers.Integral))
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not fits:
        limits = [
            f"{sign} {limit}"
            for sign, limit in ((">=", least), (">", above), ("<=", most), ("<", below))
            if limit is not None
        ]
        infinite = isinstance(value, float) and not math.isfinite(value)
        kind = "a whole number" if whole else "a finite number" if infinite else "a number"
        expected = f"{kind} {' and '.join(limits)}".strip() + (f" or {other}" if other else "")
        raise ValueError(
            f"{field}: expected {expected}, found {value!r}.{_as_whole(value) if whole else ''}"
        )
    return value


def _as_whole(value: Any) -> str:
    """How to write a float such as 9e4 as an integer."""
    fits = isinstance(value, float) and math.isfinite(value) and value == int(value)
    return f" Write {int(value)}." if fits else ""


def check_flag(field: str, value: Any) -> bool:
    """Check that a value is True or False. A string such as "no" would count as true in Python.

    Raises:
        ValueError: the value is something else.
    """
    if not _is_bool(value):
        raise ValueError(f"{field}: expected True or False, found {value!r}.")
    return value


def check_choice(field: str, value: Any, choices: Iterable[Any]) -> Any:
    """Check that a value is one of a few.

    Raises:
        ValueError: the value is something else.
    """
    choices = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        names = [str(choice) for choice in choices]
        shown = " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"
        raise ValueError(f"{field}: expected {shown}, found {value!r}.")
    return value


def check_coefficients(owner: str, *, some_positive: bool = False, **values: Any) -> None:
    """Check the coefficients of a loss: finite numbers >= 0.

    A negative coefficient would push the student away from its teacher, and one that is infinite or
    NaN would destroy its weights.

    Args:
        owner: name of the method, for messages.
        some_positive: whether one of them must be positive, because the method does nothing else.
        values: the coefficients by name.

    Raises:
        ValueError: a value is out of this range.
    """
    for name, value in values.items():
        check_number(f"{owner}.{name}", value)
    if some_positive and not any(values.values()):
        names = ", ".join(f"{owner}.{name}" for name in values)
        raise ValueError(f"{names}: expected at least one number > 0, found 0 for each.")


def _is_bool(value: Any) -> bool:
    # numpy's bool is no subclass of Python's.
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def check_device(field: str, device: torch.device | str) -> None:
    """Check that this machine has the device.

    Args:
        field: of the config or of a class, for the message.
        device: such as "cuda:1".

    Raises:
        ValueError: it has not.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{field}: expected cpu, cuda or cuda:N, found {device!r}.") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        fix = f"Add {field}=cpu to the command" if "." in field else "Use cpu"
        raise ValueError(
            f"{field}: expected a device of this machine, found {str(device)!r} but no GPU. {fix}."
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{field}: expected one of the {torch.cuda.device_count()} GPUs of this machine, "
            f"which count from 0, found {device!r}."
        )
    if found.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=found)
        except Exception as error:  # PyTorch raises many kinds for devices that it is not built for
            raise ValueError(
                f"{field}: expected a device that this PyTorch can use, found {device!r}."
            ) from error
