"""Checkpoints that are complete on disk, and that are read without running code inside them."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .files import write_file

__all__ = ["PREFIX", "Checkpointer", "load_strictly"]

PREFIX = "distillation."
"""Prefix of the tensors that a distiller adds to the student's: adapters, methods' parameters."""

# The only names that a pickle may import: what numpy arrays in plain containers need, as in the
# files of the model zoo.
_PICKLE_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PICKLE_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"expected numpy arrays in plain containers only, found that it imports "
            f"{module}.{name}. A pickle can run any code. If you trust this file, convert it to "
            f".pth with torch.save."
        )


class Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` with three differences.

    A file gets its name only after it is complete, so a killed run never leaves half a checkpoint
    under a name that `--resume` trusts. A pickle (.pkl) may contain arrays only. Safetensors files
    are read, too.
    """

    _saving = False

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        final, partial = (os.path.join(self.save_dir, f"{n}.pth") for n in (name, f".{name}.tmp"))
        self._saving = True
        try:
            super().save(f".{name}.tmp", **kwargs)
        finally:
            self._saving = False
        os.replace(partial, final)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        # `save` of the base class calls this before the file has its final name.
        if not self._saving:
            write_file(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with open(filename, "rb") as f:
                try:
                    _ArraysOnly(f, encoding="latin1").load()
                except pickle.UnpicklingError as e:
                    raise ValueError(f"checkpoint {filename} is refused: {e}") from e
        if filename.endswith(".safetensors"):
            try:
                return {"model": load_file(filename)}
            except SafetensorError as e:
                raise ValueError(
                    f"checkpoint {filename}: expected a safetensors file, found one that is cut "
                    f"off or of another kind ({e})."
                ) from e
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


class _DetectorCheckpointer(Checkpointer):
    """Loads a detector from its own checkpoint, or the student from a distiller's checkpoint."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        weights = {k: v for k, v in checkpoint["model"].items() if not k.startswith(PREFIX)}
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
        checkpoint["model"] = weights
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        pass  # `load_strictly` raises an error with these names


def load_strictly(model: nn.Module, path: str) -> str:
    """Load all tensors of a detector, and refuse any difference between file and model.

    Args:
        model: the detector; each of its tensors must be in the file, with the same shape.
        path: file or URL of a checkpoint that Detectron2 can read, or of a distiller's checkpoint.

    Returns:
        a line with the counts, for the log.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing, unexpected or of another shape; or the file cannot be read.
    """
    checkpointer = _DetectorCheckpointer(model, save_to_disk=False)
    if "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(
            f"weights of {type(model).__name__}: expected a checkpoint at {path!r}, found no file. "
            f"Give a path relative to the working directory, an absolute one, or a URL."
        )
    try:
        checkpointer.load(path)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as e:
        raise ValueError(
            f"weights of {type(model).__name__}: expected a checkpoint that Detectron2 can read at "
            f"{path!r}, found one that is cut off or of another kind ({e})."
        ) from e
    incompatible = checkpointer.incompatible
    # num_batches_tracked is a counter of BatchNorm. Old and converted files do not have it.
    missing = [k for k in incompatible.missing_keys if not k.endswith("num_batches_tracked")]
    unexpected = [k for k in incompatible.unexpected_keys if not k.endswith("num_batches_tracked")]
    shapes = [
        f"{k} {tuple(a)} in the file, {tuple(b)} here" for k, a, b in incompatible.incorrect_shapes
    ]
    # Detectron2 lists tensors of another shape as missing, too.
    other = {k for k, _, _ in incompatible.incorrect_shapes}
    missing = sorted(set(missing) - other)
    matched = len(set(model.state_dict()) - set(incompatible.missing_keys) - other)
    counts = (
        f"{matched} tensors matched, {len(missing)} missing, {len(unexpected)} unexpected, "
        f"{len(shapes)} of another shape"
    )
    if missing or unexpected or shapes:
        lists = {"missing": missing, "unexpected": unexpected, "another shape": shapes}
        shown = "\n".join(
            f"  {kind}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for kind, names in lists.items()
            if names
        )
        raise ValueError(
            f"{path} does not fit this {type(model).__name__}: expected all tensors to match, "
            f"found {counts}.\n{shown}\n"
            f"Give the config that the weights were trained with (depth, num_classes, anchors), "
            f"or the weights that belong to this config."
        )
    return counts
