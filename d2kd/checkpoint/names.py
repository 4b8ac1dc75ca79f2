"""Find the weights in a checkpoint: inside wrappers, and under names with a prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["find_state_dict", "remove_prefix"]

# Where checkpoints keep their weights, the first one that is there: Detectron2, DINO and others;
# Lightning, timm and OpenMMLab; PyTorch's tutorials; pycls.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
_PARTS = 3  # of a prefix: "module.", "module.model.", "a.module.model."


def find_state_dict(content: Any, path: str) -> tuple[dict[str, Any], str]:
    """The weights in the content of a checkpoint.

    Returns:
        name -> tensor or array; where they stand, for messages, such as "under 'state_dict'", or ""
        if they are the content itself.

    Raises:
        ValueError: there are no weights, or several and none under a usual name.
    """
    place = []
    while isinstance(content, Mapping) and not _is_state_dict(content):
        found = [key for key in content if _holds_weights(content[key])]
        known = [key for key in _WRAPPERS if key in found]
        if not known and len(found) != 1:
            raise ValueError(
                f"checkpoint {path}: expected weights at the top or under one of "
                f"{', '.join(map(repr, _WRAPPERS))} (a state_dict), found "
                f"{_shown(found, content)}. Save one state_dict alone: "
                f"torch.save({{'model': state_dict}}, 'weights.pth')."
            )
        place.append((known or found)[0])
        content = content[place[-1]]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"checkpoint {path}: expected a state_dict (name -> tensor), found a "
            f"{type(content).__name__}."
        )
    return dict(content), f"under {'.'.join(map(repr, place))}" if place else ""


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) for key in value)
        and all(isinstance(item, (Tensor, np.ndarray, np.generic)) for item in value.values())
    )


def _holds_weights(value: Any) -> bool:
    """Whether it is a state_dict, or a wrapper of one."""
    return _is_state_dict(value) or (
        isinstance(value, Mapping) and any(_is_state_dict(value.get(key)) for key in _WRAPPERS)
    )


def _shown(found: list[Any], content: Mapping) -> str:
    if found:
        return f"several: {', '.join(map(repr, found))}"
    for key in _WRAPPERS:
        part = content.get(key)
        others = part.items() if isinstance(part, Mapping) else ()
        if wrong := [(name, x) for name, x in others if not isinstance(x, (Tensor, np.ndarray))]:
            return f"{wrong[0][0]!r} under {key!r}, a {type(wrong[0][1]).__name__}"
    keys = ", ".join(f"{key!r} ({type(item).__name__})" for key, item in list(content.items())[:6])
    return f"none in {keys or 'an empty dict'}"


def remove_prefix(
    weights: dict[str, Any], own: Collection[str], path: str
) -> tuple[dict[str, Any], str]:
    """Remove a prefix that all names of a file have, such as "module." or "student.".

    Names are left alone if one of them is a name of the model as it is.

    Args:
        weights: name -> tensor, of the file.
        own: names of the model's tensors.

    Returns:
        the weights; the prefix that was removed, "" for none.

    Raises:
        ValueError: only a part of the names becomes names of the model without a prefix, for
            example in a file with a student and a teacher.
    """
    if any(name in own for name in weights):
        return weights, ""
    counts: Counter[str] = Counter()
    for name in weights:
        parts = name.split(".")
        for i in range(1, min(len(parts), _PARTS + 1)):
            if ".".join(parts[i:]) in own:
                counts[".".join(parts[:i]) + "."] += 1
                break
    if not counts:
        return weights, ""
    if len(counts) == 1:
        (prefix,) = counts
        if all(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): v for name, v in weights.items()}, prefix
    found = ", ".join(f"{prefix!r} ({n} tensors)" for prefix, n in counts.most_common(4))
    prefix = counts.most_common(1)[0][0]
    raise ValueError(
        f"checkpoint {path}: expected the names of one model, perhaps all with one prefix, found "
        f"{len(weights)} tensors, of which some would fit without the prefix {found}. Save the "
        f"part that you mean: torch.save({{'model': {{k.removeprefix({prefix!r}): v for k, v in "
        f"weights.items() if k.startswith({prefix!r})}}}}, 'weights.pth')."
    )
