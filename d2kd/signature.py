"""Complete the signature of a constructor that passes `**fields` on to its base class."""

from __future__ import annotations

import inspect
from typing import TypeVar

__all__ = ["merge_signature"]

Class = TypeVar("Class", bound=type)


def merge_signature(cls: Class) -> Class:
    """Make `inspect.signature(cls)` list the base class's fields in place of `**fields`.

    Tools that ask for a class's fields then find all of them. Examples are d2kd's check of configs
    and an editor's completion. If `Derived(Base)` takes `(self, topk, **fields)` and `Base` takes
    `(self, backbone)`, then the signature of `Derived` becomes `(topk, backbone)`.

    Use it as a class decorator. Or call it in `__init_subclass__`, so that all subclasses have it.

    Args:
        cls: the class; its `__signature__` is set.

    Returns:
        `cls`.
    """
    # mypy warns about `__init__` of an instance, but `cls` is always a class.
    own = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    own.pop("self")
    if any(p.kind is p.VAR_KEYWORD for p in own.values()):
        base = inspect.signature(cls.__mro__[1]).parameters
        own = {k: p for k, p in own.items() if p.kind is not p.VAR_KEYWORD}
        own |= {k: p for k, p in base.items() if k not in own}
    # `inspect` documents this attribute, but typeshed does not know it.
    cls.__signature__ = inspect.Signature(list(own.values()))  # type: ignore[attr-defined]
    return cls
