"""Names of fields: which a class has, and which was meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..lazy import resolve_target
from .kinds import check_kinds, check_required

__all__ = ["check_complete", "check_names", "check_nodes", "field_names", "nearest", "nodes"]


def check_nodes(cfg: object, path: str = "") -> None:
    """Check names and kinds of the fields of all nodes of a config, from the top down.

    Args:
        cfg: the config or a part of it.
        path: of this part, for messages.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    for where, node in nodes(cfg, path):
        if "_target_" in node:
            check_names(where, node)
            check_kinds(where, node)


def check_complete(cfg: object, path: str = "", later: Sequence[str] = ()) -> None:
    """Check that all nodes of a config have the fields that their targets have no default for.

    Args:
        cfg: the config or a part of it that is built as it is.
        path: of this part, for messages.
        later: paths of nodes that code adds fields to before it builds them.

    Raises:
        ValueError: the message names the field and what it can be.
    """
    for where, node in nodes(cfg, path):
        if "_target_" in node and where not in later:
            check_required(where, node)


def nodes(cfg: object, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """All nodes of a config with their paths, from the top down."""
    if isinstance(cfg, DictConfig):
        yield path, cfg
        for key in map(str, cfg):
            yield from nodes(OmegaConf.select(cfg, key), f"{path}.{key}".lstrip("."))
    elif isinstance(cfg, ListConfig):
        for i, item in enumerate(cfg):
            yield from nodes(item, f"{path}[{i}]")


def field_names(node: DictConfig) -> list[str] | None:
    """Names of the arguments of a node's target; None if it accepts any name."""
    target = resolve_target(node)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD or p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [p.name for p in parameters]


def check_names(path: str, node: DictConfig) -> None:
    """Check that the target of a node has all of its fields.

    Args:
        path: of the node, for messages.
        node: with `_target_`.

    Raises:
        ValueError: a field is unknown; the message has the nearest names.
    """
    fields = field_names(node)
    if fields is None:
        return
    target = resolve_target(node)
    for key in map(str, node):
        if key != "_target_" and key not in fields:
            raise ValueError(
                f"{path}.{key}: expected a field of {target.__name__} ({', '.join(fields)}), found "
                f"{key!r}.{nearest(key, fields)}"
            )


def nearest(name: object, known: Sequence[str]) -> str:
    """A sentence that asks whether one of the known names was meant; "" if none is near."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""
