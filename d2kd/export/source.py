"""The detector to export or to run: by its name in the model zoo, or by config and checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from ..checkpoint import read_checkpoint
from ..data import register_all
from ..data.classes import classes_of_test_set
from ..loading import load_student_config
from ..model_zoo import Detector, Entry, find_entry, get_detector, list_detectors
from ..readers import get_reader
from ..recipes import config_path
from ..resume import recorded_classes

__all__ = ["Source", "dataset_names", "open_source"]


class Source(NamedTuple):
    """A trained detector and where it comes from.

    Attributes:
        name: of the student in the zoo, or the path of the config.
        detector: the student, with the names of its classes.
        cfg: its LazyConfig; it can be a distiller's.
        weights: file of its weights.
        entry: row of the model zoo's table; None for a config and checkpoint of your own.
    """

    name: str
    detector: Detector
    cfg: DictConfig
    weights: str
    entry: Entry | None


def open_source(
    name: str,
    weights: str | os.PathLike | None = None,
    *,
    classes: Sequence[str] = (),
    device: str | None = None,
) -> Source:
    """Load a student.

    Args:
        name: of a student in the zoo, or a config: a path, or the name of one of d2kd's.
        weights: a checkpoint for a config, see `Detector`.
        classes: names of the classes. Default: the zoo's; else those of the config's test set,
            where it is registered; else those that the run kept in its checkpoint; else their
            numbers.
        device: default: the GPU if there is one, else the CPU.

    Raises:
        FileNotFoundError: the config or the checkpoint does not exist.
        ValueError: the weights are missing or do not fit, or the number of classes is another one.
    """
    # `find_entry` says which names there are.
    entry = None if name.endswith((".py", ".yaml", ".yml")) else find_entry(name)
    config = config_path(entry.config if entry else name)
    if weights is not None:
        detector = Detector(config, weights, device=device)
        classes = tuple(classes) or (entry.classes if entry else ())
        entry = None  # it has the AP of the zoo's weights
    elif entry:
        detector, weights = get_detector(name, device=device), entry.path
    else:
        raise ValueError(
            f"expected --weights with the checkpoint of the config {name!r}, found none. Add "
            f"--weights FILE, or name a student of the model zoo ({', '.join(list_detectors())})."
        )
    cfg = load_student_config(config)
    count = get_reader(detector.model).num_classes
    register_all()
    names = tuple(classes) or (entry.classes if entry else _names_of_classes(cfg, count, weights))
    if len(names) != count:
        raise ValueError(
            f"--classes: expected the names of the {count} classes of {name}, found "
            f"{len(names)}: {', '.join(names)}."
        )
    detector.classes = names
    return Source(name, detector, cfg, os.fspath(weights), entry)


def _names_of_classes(cfg: DictConfig, count: int, weights: str | os.PathLike) -> tuple[str, ...]:
    """Names by the config's test set, else by the run that saved the weights, else numbers."""
    names = classes_of_test_set(cfg, count)
    # A run's config.yaml does not register the data.
    if names == tuple(map(str, range(count))) and os.path.isfile(weights):
        saved = recorded_classes(read_checkpoint(os.fspath(weights)))
        if len(saved) == count:
            return saved
    return names


def dataset_names(cfg: DictConfig, section: str) -> list[str]:
    """Names of the sets in `dataloader.train` or `dataloader.test`; none if it has none."""
    names = OmegaConf.select(cfg, f"dataloader.{section}.dataset.names")
    return [names] if isinstance(names, str) else list(names or [])
