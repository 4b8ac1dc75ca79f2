"""Weights that a library has saved, read and matched by name."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

__all__ = ["load_strictly", "read_weights"]

# A file may have any classifier, or none: no level needs it.
_CLASSIFIERS = ("fc.", "head.", "classifier.")


def read_weights(path: str, who: str) -> dict[str, Tensor]:
    """The tensors of a file of weights; `who` names the network in messages."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{who}.pretrained: expected a file at {path!r}, found none. Give its path, or False "
            f"where a checkpoint of the whole detector is loaded anyway."
        )
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        return found.get("state_dict", found.get("model", found))
    except ImportError as e:
        raise ImportError(f"{path}: expected safetensors, found none. pip install it.") from e
    except Exception as e:  # each kind of broken file has an exception of its own
        raise ValueError(
            f"{who}.pretrained: expected a state_dict in {path!r}, found a file that is cut off or "
            f"of another kind ({e})."
        ) from e


def load_strictly(
    body: nn.Module, found: dict[str, Tensor], path: str, who: str, tensors: set[str]
) -> str:
    """Load a library's weights and accept no difference in what the levels need.

    Args:
        body: the network without what the levels do not need.
        found: what the file at `path` holds.
        who: names the network in messages.
        tensors: names of the whole network's tensors; those that `body` lacks are passed over.

    Returns:
        a line with the counts, for the log.
    """
    own = body.state_dict()
    shared = [k for k in own if k in found]
    spare = [k for k in found if k not in own]
    wrong = {
        # A counter that batch norm keeps for itself; old files lack it.
        "missing": [k for k in own if k not in found and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in spare if k not in tensors and not k.startswith(_CLASSIFIERS)],
        "of another shape": [
            f"{k} {tuple(found[k].shape)} in the file, {tuple(own[k].shape)} here"
            for k in shared
            if found[k].shape != own[k].shape
        ],
    }
    counts = ", ".join(
        [
            f"{len(shared) - len(wrong['of another shape'])} tensors matched",
            *(f"{len(keys)} {kind}" for kind, keys in wrong.items()),
            f"{len(spare) - len(wrong['unexpected'])} not needed",
        ]
    )
    if any(wrong.values()):
        shown = "\n".join(
            f"  {kind}: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}"
            for kind, keys in wrong.items()
            if keys
        )
        raise ValueError(
            f"{path} does not fit {who}: expected all tensors of its levels to match, found "
            f"{counts}.\n{shown}\nGive the library's own file for this network."
        )
    body.load_state_dict({k: found[k] for k in shared}, strict=False)
    return counts
