"""Read weights that timm or torchvision saved, and load them by name."""

from __future__ import annotations

import os

from torch import Tensor, nn

from ..checkpoint import find_state_dict, read_checkpoint
from ..finite import non_finite_names

__all__ = ["HOW_TO_GET", "check_file", "load_backbone_weights", "read_weights"]

HOW_TO_GET = "`d2kd weights` makes files of ImageNet weights (docs/backbones.md)."

# Prefixes of the classifier's tensors. No pyramid level needs them, so that a file may contain any
# classifier, or none.
_CLASSIFIERS = ("fc.", "head.", "classifier.")


def check_file(path: str, field: str, otherwise: str) -> None:
    """Check that a file of weights is there.

    Args:
        field: name for the message.
        otherwise: what the field may be instead, for the message.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{field}: expected a file at {path!r}, found none. {HOW_TO_GET} Give the path of a "
            f"file, or {otherwise}."
        )


def read_weights(path: str, who: str) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Args:
        path: see `read_checkpoint`. It holds a state dict, or a dict that has one under a usual
            name such as "state_dict" or "model".
        who: name of the network for messages.

    Returns:
        name -> tensor.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of another kind, would run code, or has weights that are
            not finite.
    """
    otherwise = "False if a checkpoint of the whole detector is loaded anyway"
    check_file(path, f"{who}.pretrained", otherwise)
    try:
        weights, _ = find_state_dict(read_checkpoint(path), path)
    except ValueError as e:
        raise ValueError(
            f"{who}: expected a state_dict in {path!r}, found a file that is incomplete "
            f"or of another kind ({e})."
        ) from e
    if bad := non_finite_names(weights):
        raise ValueError(
            f"{who}: expected finite weights in {path!r}, found NaN or infinite values "
            f"in {len(bad)} of {len(weights)} tensors ({', '.join(bad[:3])})."
        )
    return weights


def load_backbone_weights(
    body: nn.Module, weights: dict[str, Tensor], path: str, who: str, network_keys: set[str]
) -> str:
    """Load weights under the library's names into a backbone, and accept no mismatch.

    Tensors that only the cut-off part of the network has, such as the classifier's, are ignored.

    Args:
        body: the network without the parts that no level needs.
        weights: name -> tensor, the content of the file at `path`.
        path: for messages.
        who: name of the network for messages.
        network_keys: names of all tensors of the network before it was cut.

    Returns:
        a line with the counts, for the log.

    Raises:
        ValueError: a tensor of `body` is missing or has another shape, or the file contains a
            tensor that the network does not have.
    """
    own = body.state_dict()
    shared = [k for k in own if k in weights]
    not_in_body = [k for k in weights if k not in own]
    mismatches = {
        # Old files lack the counter num_batches_tracked of batch norms, and nothing here needs it.
        "missing": [k for k in own if k not in weights and not k.endswith("num_batches_tracked")],
        "unexpected": [
            k for k in not_in_body if k not in network_keys and not k.startswith(_CLASSIFIERS)
        ],
        "of another shape": [
            f"{k} {tuple(weights[k].shape)} in the file, {tuple(own[k].shape)} here"
            for k in shared
            if weights[k].shape != own[k].shape
        ],
    }
    counts = ", ".join(
        [
            f"{len(shared) - len(mismatches['of another shape'])} tensors matched",
            *(f"{len(keys)} {kind}" for kind, keys in mismatches.items()),
            f"{len(not_in_body) - len(mismatches['unexpected'])} not needed",
        ]
    )
    if any(mismatches.values()):
        shown = "\n".join(
            f"  {kind}: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}"
            for kind, keys in mismatches.items()
            if keys
        )
        raise ValueError(
            f"{path} does not fit {who}: expected all tensors of its levels to match, found "
            f"{counts}.\n{shown}\nGive the file that the library itself offers for this network."
        )
    body.load_state_dict({k: weights[k] for k in shared}, strict=False)
    return counts
