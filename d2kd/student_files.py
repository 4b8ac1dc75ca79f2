"""Files that hold the student: after the last step, where it was best, and how to look at it."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from torch import nn

from .checkpoint import Checkpointer
from .checkpoint.reading import read_checkpoint

__all__ = ["BestStudent", "FinalStudent", "changes_student", "closing_line", "metric_problem"]

logger = logging.getLogger(__name__)
_OTHER_SCALARS = ("distill/", "mean_teacher/", "ema/")  # in the log, but not of the evaluator


class _StudentFile(Checkpointer):
    """A `Checkpointer` of weights alone. `--resume` never starts from its files."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class FinalStudent(HookBase):
    """Saves a student as <folder>/<name>.pth after the last step.

    Args:
        student: the detector, without methods.
        folder: where to save it.
        name: of the file, without its suffix.
    """

    def __init__(self, student: nn.Module, folder: str, name: str):
        self._file = _StudentFile(student, folder)
        self._name = name

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:  # false after an error
            self._file.save(self._name)


class BestStudent(hooks.BestCheckpointer):
    """Saves a student as <folder>/<name>.pth whenever an evaluation gives its best metric so far.

    Detectron2's hook forgets the best metric when a run resumes. Here, the file keeps it.

    Args:
        student: the detector, without methods.
        folder: where to save it.
        name: of the file, without its suffix.
        metric: its name in the log, such as "bbox/AP". Larger is better.
        eval_period: steps between evaluations; 0: at the end only.

    Raises:
        ValueError: the first evaluation does not give the metric, while training.
    """

    def __init__(self, student: nn.Module, folder: str, name: str, metric: str, eval_period: int):
        self._file, self._path = _StudentFile(student, folder), Path(folder, f"{name}.pth")
        super().__init__(eval_period, self, metric, file_prefix=name)

    def before_train(self) -> None:
        if not self.trainer.start_iter:  # of an earlier run in this folder
            self._path.unlink(missing_ok=True)
        if not self._path.is_file():
            return
        saved = read_checkpoint(str(self._path))
        # A file of a later step is replaced: the run was killed after it, and repeats that step.
        if saved.get("iteration", self.trainer.start_iter) < self.trainer.start_iter:
            self.best_metric, self.best_iter = saved["metric"], saved["iteration"]

    def _best_checking(self) -> None:
        # The audit finds most wrong names. It does not rehearse every evaluator.
        latest, step = self.trainer.storage.latest(), self.trainer.iter
        given = [k for k, (_, i) in latest.items() if "/" in k and i == step]
        given = [k for k in given if not k.startswith(_OTHER_SCALARS)]
        problem = given and metric_problem(self._val_metric.removeprefix("ema/"), given)
        if problem and step + 1 < self.trainer.max_iter:
            raise ValueError(problem)
        if problem:  # the other files of the last step are still to be written
            logger.error("%s", problem)
        else:
            super()._best_checking()

    def save(self, name: str, **state: Any) -> None:
        """Detectron2's hook calls this as a method of its checkpointer."""
        metric, _ = self.trainer.storage.latest()[self._val_metric]
        self._file.save(name, metric=float(metric), **state)


def metric_problem(metric: str, given: Iterable[str]) -> str:
    """What is wrong with `train.best_metric`; "" if the evaluator gives it.

    Args:
        metric: such as "bbox/AP".
        given: all metrics of the evaluator.
    """
    names = list(dict.fromkeys(given))
    if metric in names:
        return ""
    # A set may have hundreds of classes with a metric of each.
    shown = [name for name in names if "/AP-" not in name] or names
    return (
        f"train.best_metric: expected a metric that the evaluator gives ({', '.join(shown)}), "
        f"found {metric!r}."
    )


def changes_student(overrides: Iterable[str]) -> bool:
    """Whether a trained student needs the overrides of its training to be loaded and run.

    Args:
        overrides: such as "model.num_classes=3". Where its initial weights came from, its teacher,
            the methods and the training data do not count.
    """
    names = [x.partition("=")[0] for x in overrides]
    return any(
        name.startswith(("model.", "dataloader.test."))
        and not name.startswith(("model.teacher", "model.methods"))
        and not name.endswith(".pretrained")
        for name in names
    )


def closing_line(config: str, weights: str, metrics: Mapping[str, tuple[float, int]]) -> str:
    """The last line of a training: where the weights are, their AP, and how to look at them.

    Args:
        config: a path or a name that `d2kd predict` takes.
        weights: path of the last checkpoint.
        metrics: name -> value and step, of the last evaluation. A detector of boxes has "bbox/AP".
    """
    if "bbox/AP" not in metrics:
        return f"Finished: {weights}."
    ap = metrics["bbox/AP"][0]
    # COCO's evaluation gives no number for these.
    score = f"AP {ap:.1f}" if math.isfinite(ap) else "no AP: no detections, or no boxes to find"
    look = ["d2kd", "predict", config, "--weights", weights]
    return (
        f"Finished: {weights} ({score}). To look at it: {shlex.join(look)} --images IMAGES "
        f"--output FOLDER"
    )
