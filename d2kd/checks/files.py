"""Check that the files that a config names are there, before the data are read."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ..lazy import resolve_target
from ..loading import load_detector_config, zoo_weights

__all__ = ["check_models", "check_weights"]


def check_weights(
    field: str,
    path: Any,
    coming: Collection[str] = (),
    expected: str = "a file or a URL",
    fix: str = "A path is relative to the current folder.",
) -> None:
    """Check that a checkpoint is there. URLs are not looked at.

    Args:
        field: name for the message.
        path: of the file; anything but a text passes.
        coming: folders of runs that come first, and may make the file.
        expected, fix: parts of the message.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not isinstance(path, str) or not path or "://" in path or os.path.isfile(path):
        return
    if not _is_coming(path, coming):
        raise FileNotFoundError(f"{field}: expected {expected}, found no file at {path!r}. {fix}")


def _is_coming(path: str, coming: Collection[str]) -> bool:
    place = Path(os.path.abspath(path))
    return any(place.is_relative_to(os.path.abspath(folder)) for folder in coming)


def check_models(
    model: DictConfig, *, evaluates_teacher: bool = False, coming: Collection[str] = ()
) -> None:
    """Check the files of student and teacher, and that a teacher that is evaluated can detect.

    Args:
        model: the section of a config. A detector without a teacher passes.
        evaluates_teacher: whether the teacher will be evaluated.
        coming: see `check_weights`.

    Raises:
        FileNotFoundError: a config or a checkpoint is not there, or the model zoo does not have it.
        ValueError: the teacher will be evaluated, and there is none, or it has no detector.
    """
    teacher = model.get("teacher")
    if evaluates_teacher:
        _check_detects(teacher)
    _check_config(model.get("student"), model.get("setup"), coming)
    if not isinstance(teacher, DictConfig):
        return
    source, weights = teacher.get("model"), teacher.get("weights")
    _check_config(source, teacher.get("setup"), coming)
    if weights == "zoo":
        zoo_weights(source)
    else:
        check_weights("model.teacher.weights", weights, coming)


def _check_config(source: Any, setup: Any, coming: Collection[str]) -> None:
    if isinstance(source, str) and not os.path.isfile(source) and not _is_coming(source, coming):
        load_detector_config(source, setup)  # of Detectron2's model zoo; else an error


def _check_detects(teacher: Any) -> None:
    if teacher is None:
        raise ValueError(
            "model: expected a Distiller with a teacher to evaluate, found none. Evaluate the "
            "student, or add model.teacher."
        )
    target: Any = resolve_target(teacher) if "_target_" in teacher else None
    if not getattr(target, "detects", True):
        raise ValueError(
            f"model.teacher: expected a detector, found {target.__name__}, which has no detector "
            f"to evaluate. Evaluate the student, and set train.teacher_check.images=0."
        )
