"""Checkpoints: written whole or not at all, read without running code that they carry."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

__all__ = ["PREFIX", "Checkpointer", "load_strictly"]

PREFIX = "distillation."
"""What a distiller's checkpoint holds beside the student: adapters, parameters of methods."""

# What a model-zoo file needs: numpy arrays in plain containers.
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
            f"it asks for {module}.{name}; expected numpy arrays in plain containers only. "
            f"A pickle can run any code: convert a file that you trust to .pth with torch.save."
        )


class Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` whose files appear complete and whose pickles hold arrays only."""

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        # A killed run must not leave half a checkpoint under a name that --resume trusts.
        final, partial = (os.path.join(self.save_dir, f"{n}.pth") for n in (name, f".{name}.tmp"))
        self.tag_last_checkpoint = lambda _basename: None  # not before the file has its name
        try:
            super().save(f".{name}.tmp", **kwargs)
        finally:
            del self.tag_last_checkpoint
        os.replace(partial, final)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        final = os.path.join(self.save_dir, "last_checkpoint")
        with open(f"{final}.tmp", "w") as f:
            f.write(last_filename_basename)
        os.replace(f"{final}.tmp", final)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with open(filename, "rb") as f:
                try:
                    _ArraysOnly(f, encoding="latin1").load()
                except pickle.UnpicklingError as e:
                    raise ValueError(f"checkpoint {filename} is refused: {e}") from e
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


class _DetectorCheckpointer(Checkpointer):
    """Reads the detector out of any checkpoint, a distiller's included."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        weights = {k: v for k, v in checkpoint["model"].items() if not k.startswith(PREFIX)}
        # Older files hold the pixel statistics too. Others than the config's would ruin the maps.
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            found = torch.as_tensor(weights.pop(name, buffers.get(name, 0.0))).flatten()
            expected = buffers.get(name, found).flatten().to(found)
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3):
                raise ValueError(
                    f"{name} of {type(self.model).__name__}: expected the config's "
                    f"{expected.tolist()}, the checkpoint was trained with {found.tolist()}."
                )
        checkpoint["model"] = weights
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        pass  # `load_strictly` raises with the same names


def load_strictly(model: nn.Module, path: str) -> str:
    """Load a whole detector and accept no difference between file and model.

    Args:
        model: the detector that the weights must fit, tensor by tensor.
        path: file or URL of a checkpoint that Detectron2 can read, or of a distiller's.

    Returns:
        a line with the counts, for the log.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing, unexpected or of another shape.
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
    found = checkpointer.incompatible
    # A counter that batch norm keeps for itself; old and converted files lack it.
    missing = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")]
    unexpected = [k for k in found.unexpected_keys if not k.endswith("num_batches_tracked")]
    shapes = [f"{k} {tuple(a)} in the file, {tuple(b)} here" for k, a, b in found.incorrect_shapes]
    # Those of another shape are among the missing, too.
    other = {k for k, _, _ in found.incorrect_shapes}
    missing = sorted(set(missing) - other)
    matched = len(set(model.state_dict()) - set(found.missing_keys) - other)
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
