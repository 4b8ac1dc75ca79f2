"""Load a trained detector, and accept no difference between file and model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .checkpointer import Checkpointer
from .fit import PREFIX

__all__ = ["load_strictly"]


class _DetectorCheckpointer(Checkpointer):
    """Loads a detector from its own checkpoint, or the student from a distiller's checkpoint."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        weights = {k: v for k, v in checkpoint["model"].items() if not k.startswith(PREFIX)}
        checkpoint["model"] = weights
        return super()._load_model(checkpoint)

    def _check_weights(self, weights: dict[str, Any]) -> None:
        for name in [k for k in weights if k.startswith(PREFIX)]:  # there was a prefix before it
            del weights[name]
        super()._check_weights(weights)
        # Older files also contain the pixel statistics. If they differ from the config's, all
        # feature maps would be wrong.
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            saved = torch.as_tensor(weights.pop(name, buffers.get(name, 0.0))).flatten()
            expected = buffers.get(name, saved).flatten().to(saved)
            if saved.shape != expected.shape or not torch.allclose(saved, expected, rtol=1e-3):
                raise ValueError(
                    f"{name} of {type(self.model).__name__}: expected the config's "
                    f"{expected.tolist()}, found {saved.tolist()} in the checkpoint. Set the "
                    f"statistics that the weights were trained with."
                )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        pass  # `load_strictly` raises an error with these names


def load_strictly(model: nn.Module, path: str) -> str:
    """Load all tensors of a detector, and refuse any difference between file and model.

    Args:
        model: the detector; each of its tensors must be in the file, with the same shape.
        path: file or URL of a checkpoint that Detectron2 can read, or of a distiller's checkpoint.
            See `Checkpointer` for the formats, wrappers and prefixes.

    Returns:
        a line with the counts, for the log.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing, unexpected, of another shape, or not finite; or the file
            cannot be read, or would run code.
    """
    who = type(model).__name__
    checkpointer = _DetectorCheckpointer(model, save_to_disk=False)
    try:
        checkpointer.load(path)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"weights of {who}: {e}") from None
    except ValueError as e:
        raise ValueError(f"weights of {who}: {e}") from e
    fit = checkpointer.fit()
    if not fit.is_exact:
        raise ValueError(
            f"{path} does not fit this {who}: expected all tensors to match, found {fit}.\n"
            f"{fit.examples()}\n"
            f"Give the config that the weights were trained with (depth, num_classes, anchors), "
            f"or the weights that belong to this config."
        )
    return f"{fit}{checkpointer.found}"
