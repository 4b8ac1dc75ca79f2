"""Checkpoints that are complete and finite on disk, and that are read without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..files import open_to_replace, write_file
from ..finite import non_finite_names
from .fit import PREFIX, Fit
from .names import find_state_dict, remove_prefix
from .reading import read_checkpoint

__all__ = ["Checkpointer"]


class Checkpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` with these differences.

    Saving: a file gets its name only after it is complete and on disk, so a killed run never leaves
    half a checkpoint under a name that `--resume` trusts. A state with NaN or infinite values is
    never saved.

    Loading: no file can run code, whatever its suffix (see `read_checkpoint`). Weights are also
    found under "state_dict" and other usual names, and under names that all have one prefix.
    Weights that are not finite are refused. `resume_or_load` says what it loaded: initial weights
    must fit in a part at least, a run that goes on must fit entirely.

    Attributes:
        incompatible: names that differ between file and model, of the last file that was loaded.
        names: of its tensors, as they were given to the model.
        found: ", under 'state_dict', without the prefix 'module.'" or similar, of the last file.
        own: path of the checkpoint that `resume_or_load(resume=True)` would continue from, if it is
            of this run: saved by it, or the one that it resumed from. "" if there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.incompatible: Any = None
        self.names: set[str] = set()
        self.found = self.own = ""
        self._path, self._is_sound, self._resuming = "", False, False
        # A detector may keep an infinite limit or a mask in a buffer on purpose.
        buffers = dict(self.model.named_buffers())
        self._may_be_infinite = set(non_finite_names(buffers))

    # Saving

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model, the checkpointables and `kwargs` as <save_dir>/<name>.pth.

        Raises:
            FloatingPointError: a tensor has a NaN or an infinite value; nothing is saved.
            DiskFullError: the disk is full; no part of the file is left.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict()}
        state.update(
            {key: item.state_dict() for key, item in self.checkpointables.items()}, **kwargs
        )
        allowed = {f"model.{name}" for name in self._may_be_infinite}
        if bad := [key for key in non_finite_names(state) if key not in allowed]:
            last = os.path.basename(self.get_checkpoint_file())
            raise FloatingPointError(
                f"checkpoint {name}.pth: expected finite values, found NaN or infinite ones in "
                f"{len(bad)} tensors ({_some(bad)}). It is not saved; "
                f"{f'the last checkpoint is still {last}' if last else 'there is none before it'}. "
                f"Lower optimizer.lr, lengthen the warm-up or set train.clip_grad_norm, then "
                f"continue with --resume."
            )
        for partial in Path(self.save_dir).glob(".*.pth.*.tmp"):
            partial.unlink(missing_ok=True)  # of a run that was killed while it saved
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with open_to_replace(path) as f:
            torch.save(state, f)
        self.tag_last_checkpoint(f"{name}.pth")
        self.own = path

    def save_missing(self, name: str, **kwargs: Any) -> None:
        """Save as `save` does, if there is no whole checkpoint of this name."""
        try:
            read_checkpoint(os.path.join(self.save_dir, f"{name}.pth"))
        except (FileNotFoundError, ValueError):
            self.save(name, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_file(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    # Loading

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; see `DetectionCheckpointer.load`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file cannot be read, would run code, has no weights, or has some that
                are not finite.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise FileNotFoundError(
                f"expected a checkpoint at {path!r}, found no file. If a training makes it, train "
                f"first. A path is relative to the current folder."
            )
        self._path, self._is_sound, self.incompatible = path, False, None
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it behind after an error

    def resume_or_load(
        self, path: str, *, resume: bool = True, replaces: bool = True
    ) -> dict[str, Any]:
        """Continue the run in `save_dir`, or load the initial weights at `path`.

        Without a checkpoint in `save_dir`, `resume` is the same as a new run, and the log says so.

        Args:
            path: of the initial weights; "" for none.
            resume: whether to continue.
            replaces: whether a new run replaces the checkpoints of an earlier run in `save_dir`;
                the log then says so.

        Raises:
            FileNotFoundError: there is no file at `path`.
            ValueError: see `load`; or none of the initial weights fits the model; or the last
                checkpoint of the run differs from the model in any tensor, cannot be read, or is
                not finite. In the latter two cases the message names the newest checkpoint that is
                whole.
        """
        if resume and self.has_checkpoint():
            return self._resume()
        if resume:
            self.logger.warning(
                "--resume: expected %s/last_checkpoint, found none. The run starts from the "
                "beginning.%s",
                self.save_dir,
                self._finished_before(),
            )
        elif replaces and self.has_checkpoint():
            self.logger.warning(
                "train.output_dir %s has checkpoints of an earlier run, which this new run "
                "replaces. To continue that run instead, stop this one and add --resume.",
                self.save_dir,
            )
        rest = self.load(path, checkpointables=[])
        if self.incompatible is not None:
            self._report_initial_weights(path)
        return rest

    def _finished_before(self) -> str:
        """A sentence about finished runs in the folder; "" if there are none."""
        kept = sorted(Path(self.save_dir).glob("previous_*/model_final.pth"))
        return f" Finished runs are in {', '.join(p.parent.name for p in kept)}." if kept else ""

    def fit(self) -> Fit:
        """How the last file that was loaded fits the model."""
        return Fit.of(self.model, self.incompatible, self.names)

    def _report_initial_weights(self, path: str) -> None:
        fit = self.fit().without(PREFIX)
        if not fit.matched:
            raise ValueError(
                f"train.init_checkpoint {path}: expected weights of this "
                f"{type(self.model).__name__}, found {fit}{self.found}.\n{fit.examples()}\n"
                f"Give the checkpoint of a detector with the same architecture."
            )
        if fit.is_exact:
            self.logger.info("Initial weights: %s, from %s%s", fit, path, self.found)
            return
        hint = "" if fit.fits_mostly else "\nLess than half of the file fits. Is it the right one?"
        self.logger.warning(
            "Initial weights: %s, from %s%s\n%s%s", fit, path, self.found, fit.examples(), hint
        )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Write nothing: fvcore has a line for each tensor, and this class writes a summary."""

    def _resume(self) -> dict[str, Any]:
        self._resuming, self._is_sound = True, False
        try:
            try:
                path = self.get_checkpoint_file()
            except UnicodeDecodeError:
                path = ""
            if "\0" in path or not os.path.basename(path):
                raise ValueError(
                    f"expected the name of a checkpoint in {self.save_dir}/last_checkpoint, found "
                    f"an empty, zero-filled or damaged file."
                )
            rest = self.load(path)
        except (OSError, ValueError) as e:
            # If the file itself is sound, then it does not fit the config, and no other one would.
            hint = "" if self._is_sound else f"\n{self._newest_whole()}"
            raise ValueError(f"--resume: {e}{hint}") from e
        finally:
            self._resuming = False
        self.own = path
        if self.incompatible is not None:
            self.logger.info("Resumed: %s, from %s", self.fit(), path)
        return rest

    def _check_resumed(self, checkpoint: dict[str, Any]) -> None:
        fit = self.fit()
        if not fit.is_exact:
            raise ValueError(
                f"expected {self._path} to have all tensors of this config's model, found {fit}.\n"
                f"{fit.examples()}\n"
                f"Give the config that the run began with (num_classes, methods), or another "
                f"train.output_dir for a new run."
            )
        if lacking := [key for key in self.checkpointables if key not in checkpoint]:
            raise ValueError(
                f"expected the checkpoint of a run at {self._path}, found one without "
                f"{', '.join(lacking)}. To start with its weights, set train.init_checkpoint and "
                f"another train.output_dir."
            )
        # The weights are finite. A moment of the optimizer that is not spoils them in one step.
        if bad := non_finite_names({key: checkpoint[key] for key in self.checkpointables}):
            self._is_sound = False
            raise ValueError(
                f"checkpoint {self._path}: expected a finite state of the optimizer, found NaN or "
                f"infinite values in {len(bad)} of its tensors ({_some(bad)}). The training that "
                f"wrote it diverged."
            )

    def _newest_whole(self) -> str:
        """A sentence about the newest checkpoint of the run from which it can continue."""
        folder = Path(self.save_dir)
        # The damaged one is found damaged again.
        for path in sorted(folder.glob("*.pth"), key=lambda p: p.stat().st_mtime, reverse=True):
            try:
                content = read_checkpoint(str(path))
            except (OSError, ValueError):
                continue
            if not isinstance(content, dict) or not {"model", *self.checkpointables} <= {*content}:
                continue
            states = {key: content[key] for key in self.checkpointables}
            bad = {*non_finite_names(content["model"])} - self._may_be_infinite
            if not bad and not non_finite_names(states):
                return (
                    f"The newest checkpoint that is whole is {path}. To continue from it, run: "
                    f"echo {path.name} > {folder / 'last_checkpoint'}"
                )
        return f"No checkpoint in {folder} is whole. Leave out --resume to start again."

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        more: dict[str, Any] = {}
        if not isinstance(content, dict):
            pass  # find_state_dict refuses it
        elif filename.endswith(".pkl") and "model" not in content:
            # Detectron2 takes such a pickle for one of Caffe2, and matches names by their endings.
            content = {"model": content.get("blobs", content)}
            more = {"__author__": "Caffe2", "matching_heuristics": True}
        elif filename.endswith(".pyth"):
            more = {"__author__": "pycls", "matching_heuristics": True}
        if more and isinstance(content.get("model"), dict):
            content["model"] = {
                k: v for k, v in content["model"].items() if not str(k).endswith("_momentum")
            }
        weights, place = find_state_dict(content, filename)
        self.found = f", {place}" if place not in ("", "under 'model'") else ""
        url = getattr(self, "_parsed_url_during_load", None)  # not in all versions of Detectron2
        query = parse_qs(url.query) if url is not None else {}
        if query.pop("matching_heuristics", ["False"]) == ["True"]:
            more["matching_heuristics"] = True
        if query:
            raise ValueError(
                f"{self._path}: expected no query but matching_heuristics, found {query}"
            )
        if place:
            more = {**{k: v for k, v in content.items() if isinstance(k, str)}, **more}
        return {**more, "model": {name: _as_tensor(name, x) for name, x in weights.items()}}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if not checkpoint.get("matching_heuristics"):
            own = self.model.state_dict().keys()
            weights, prefix = remove_prefix(checkpoint["model"], own, self._path)
            self.found += f", without the prefix {prefix!r}" if prefix else ""
            checkpoint["model"] = weights
        self._check_weights(checkpoint["model"])
        self._is_sound = True
        self.incompatible = super()._load_model(checkpoint)
        if self._resuming:
            self._check_resumed(checkpoint)
        return self.incompatible

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        super()._convert_ndarray_to_tensor(state_dict)
        self.names = set(state_dict)  # fvcore calls this last with what the model gets

    def _check_weights(self, weights: dict[str, Any]) -> None:
        bad = [name for name in non_finite_names(weights) if name not in self._may_be_infinite]
        if bad:
            raise ValueError(
                f"checkpoint {self._path}: expected finite weights, found NaN or infinite values "
                f"in {len(bad)} of {len(weights)} tensors ({_some(bad)}). The training that wrote "
                f"it diverged. Give an earlier checkpoint."
            )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def _as_tensor(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.from_numpy(np.asarray(value))
    except TypeError as e:
        raise ValueError(f"tensor {name}: expected numbers that PyTorch knows, found {e}") from e
