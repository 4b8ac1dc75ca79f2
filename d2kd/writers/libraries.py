"""Write scalars and pictures of a training to Weights & Biases and to MLflow."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.events import EventWriter, get_event_storage

from ..files import write_file
from ..packages import import_package
from ..random_state import keep_random_state

__all__ = ["LIBRARIES", "MLflowWriter", "WandbWriter", "check_writers"]


class LibraryWriter(EventWriter, ABC):
    """Passes on what is new in Detectron2's event storage.

    The id of the library's run is kept in the folder, so that a resumed training continues it.

    Args:
        folder: `train.output_dir`.
        options: of the function that starts the library's run.
        resume: whether the training in this folder goes on.
        window_size: steps over which losses are smoothed, as in Detectron2's writers.

    Raises:
        ImportError: the library is not installed.
        ValueError: the library does not take the options.
    """

    name: str
    """Of the library's module and of its field in `train.writers`."""

    def __init__(
        self,
        folder: str,
        options: Mapping[str, Any],
        *,
        resume: bool = False,
        window_size: int = 20,
    ):
        self._library: Any = import_library(self.name)
        self._window_size = window_size
        self._last_write = -1
        file = Path(folder, f"{self.name}_run_id.txt")
        run_id = file.read_text().strip() if resume and file.is_file() else None
        with keep_random_state():
            try:
                started = self._start(folder, run_id, {str(k): v for k, v in options.items()})
            except TypeError as error:
                raise ValueError(
                    f"train.writers.{self.name}: expected options of its run, found "
                    f"{dict(options)}: {error}."
                ) from error
        write_file(file, f"{started}\n")

    def write(self) -> None:
        storage = get_event_storage()
        scalars: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, step) in storage.latest_with_smoothing_hint(self._window_size).items():
            if step > self._last_write:
                scalars[step][name] = value
        self._last_write = max(scalars, default=self._last_write)
        with keep_random_state():
            for step in sorted(scalars):
                self._log_scalars(scalars[step], step)
            # Detectron2 has no public way to read them. Its own writer, which removes them from the
            # storage, reads them so.
            for name, pixels, step in storage._vis_data:
                self._log_image(name, np.asarray(pixels).transpose(1, 2, 0), step)

    def close(self) -> None:
        # The trainer closes its writers after an error, too.
        with keep_random_state():
            self._finish(failed=sys.exc_info()[0] is not None)

    @abstractmethod
    def _start(self, folder: str, run_id: str | None, options: dict[str, Any]) -> str:
        """Start a run, or continue the one with this id. Returns its id."""

    @abstractmethod
    def _log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars of a step."""

    @abstractmethod
    def _log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log a picture (h, w, 3), RGB."""

    @abstractmethod
    def _finish(self, failed: bool) -> None:
        """End the run."""


class WandbWriter(LibraryWriter):
    """Writes to Weights & Biases. `wandb.init` gets the options; see `LibraryWriter`."""

    name = "wandb"

    def _start(self, folder: str, run_id: str | None, options: dict[str, Any]) -> str:
        own = dict(dir=folder, name=folder, id=run_id, resume="allow" if run_id else None)
        self._run = self._library.init(**{**own, **options})
        # A resumed training repeats the steps after its last checkpoint. W&B's own step could not
        # go back.
        self._run.define_metric("*", step_metric="iteration")
        return self._run.id

    def _log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "iteration": step})

    def _log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({name: self._library.Image(pixels), "iteration": step})

    def _finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflowWriter(LibraryWriter):
    """Writes to MLflow. `mlflow.start_run` gets the options; see `LibraryWriter`."""

    name = "mlflow"

    def _start(self, folder: str, run_id: str | None, options: dict[str, Any]) -> str:
        own = dict(run_id=run_id) if run_id else dict(run_name=folder)
        return self._library.start_run(**{**own, **options}).info.run_id

    def _log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        self._library.log_metrics({_plain(k): v for k, v in scalars.items()}, step=step)

    def _log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._library.log_image(pixels, key=_plain(name), step=step)

    def _finish(self, failed: bool) -> None:
        self._library.end_run("FAILED" if failed else "FINISHED")


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes; names of classes can have others."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)


LIBRARIES: dict[str, type[LibraryWriter]] = {x.name: x for x in (WandbWriter, MLflowWriter)}
"""The fields of `train.writers`."""


def import_library(name: str) -> Any:
    """Import a library of `LIBRARIES`.

    Raises:
        ImportError: it is not installed.
    """
    return import_package(name, f"train.writers.{name}", install=name)


def check_writers(libraries: Mapping[str, Any]) -> None:
    """Check that the libraries which `train.writers` asks for are installed.

    Raises:
        ImportError: one is not.
    """
    for name, options in libraries.items():
        if options is not None:
            import_library(str(name))
