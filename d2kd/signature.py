"""Constructors that hand on what their base class takes."""

from __future__ import annotations

import inspect

__all__ = ["merge_signature"]


def merge_signature(cls: type) -> type:
    """Let `inspect.signature(cls)` show the base's fields in place of the `**fields` for them.

    Whoever asks what fields there are, such as the check of a config or an editor, gets all.
    A decorator; or for `__init_subclass__`, where subclasses name their own fields only.
    """
    own = dict(inspect.signature(cls.__init__).parameters)
    own.pop("self")
    if any(p.kind is p.VAR_KEYWORD for p in own.values()):
        base = inspect.signature(cls.__base__).parameters
        own = {k: p for k, p in own.items() if p.kind is not p.VAR_KEYWORD}
        own |= {k: p for k, p in base.items() if k not in own}
    cls.__signature__ = inspect.Signature(list(own.values()))
    return cls
