"""What a resumed run shares with the run that it continues, and what it says where they differ."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase, TrainerBase
from omegaconf import DictConfig, ListConfig, OmegaConf

__all__ = [
    "RunRecord",
    "explain_interruption",
    "first_step",
    "recorded_classes",
    "run_settings",
    "same_hyperparameters",
    "training_classes",
]

logger = logging.getLogger(__name__)

_BATCH = ("dataloader.train.total_batch_size", "train.accumulate")


def first_step(done: int, max_iter: int) -> int:
    """The step at which a resumed run goes on. The log says what is left to do.

    Args:
        done: number of steps that the run has done.
        max_iter: `train.max_iter`, steps of the whole run.

    Raises:
        ValueError: the run has done more steps than `max_iter`.
    """
    if done > max_iter:
        raise ValueError(
            f"--resume: expected train.max_iter to be at least the {done} steps that the run has "
            f"done, found {max_iter}. Raise it, or set another train.output_dir for a new run."
        )
    if done == max_iter:
        logger.warning(
            "--resume: the run is finished, all %d steps are done. It is only evaluated. To train "
            "longer, raise train.max_iter.",
            done,
        )
    else:
        logger.info("--resume: %d of %d steps are done", done, max_iter)
    return done


@contextlib.contextmanager
def explain_interruption(trainer: TrainerBase, saved: Callable[[], str]) -> Iterator[None]:
    """If the training in the block is interrupted (Ctrl-C), say what is kept and how to go on.

    Args:
        trainer: its `iter` is the step that was interrupted.
        saved: gives the path of the run's last checkpoint, "" if there is none.
    """
    try:
        yield
    except KeyboardInterrupt:
        path, place = saved(), f"step {trainer.iter} of {trainer.max_iter}"
        if path and trainer.iter == trainer.max_iter:
            place = "the evaluation after the last step"
            fix = f"The result is {path}. The same command with --resume evaluates it."
        elif path:
            number = re.search(r"model_(\d+)\.pth$", path)  # of the last step before it, from 0
            step = f"of step {int(number[1]) + 1} ({path})" if number else path
            fix = f"The last checkpoint is {step}. The same command with --resume goes on from it."
        else:
            fix = "No checkpoint is saved yet, so the same command begins again."
        logger.warning(f"Stopped at {place}. {fix}")
        raise


def training_classes(cfg: DictConfig) -> list[str] | None:
    """Names of the classes of `dataloader.train`, in their order; None if they are not registered.

    Call it after the dataset is loaded: some datasets know their classes only then.
    """
    names = OmegaConf.select(cfg, "dataloader.train.dataset.names")
    if not names:
        return None
    classes = MetadataCatalog.get(names if isinstance(names, str) else names[0])
    found = classes.get("thing_classes", None)
    return None if found is None else list(found)


def run_settings(cfg: DictConfig) -> dict[str, Any]:
    """What a config says of batches, methods and the mean teacher: path of a field -> its value.

    These values are in no other part of a checkpoint. A node has its target's name in `_target_`.
    Objects that are no text, number or flag are left out.
    """
    settings: dict[str, Any] = {}
    for path in (*_BATCH, "model.methods", "train.mean_teacher"):
        _add_values(settings, OmegaConf.select(cfg, path), path)
    return settings


def _add_values(settings: dict[str, Any], value: Any, path: str) -> None:
    if isinstance(value, DictConfig):
        for name in map(str, value):
            _add_values(settings, value[name], f"{path}.{name}")
    elif isinstance(value, ListConfig):
        for i, item in enumerate(value):
            _add_values(settings, item, f"{path}[{i}]")
    elif path.endswith("._target_"):
        # A config that a run has saved names the module, too.
        settings[path] = str(getattr(value, "__name__", value)).rpartition(".")[2]
    elif isinstance(value, (str, int, float)):
        settings[path] = value


class RunRecord(HookBase):
    """Keeps in each checkpoint what a run was begun with, and compares it when the run resumes.

    Args:
        max_iter: steps of the whole run.
        classes: names of the classes in their order; None if they are not known.
        settings: path of a field -> its value, see `run_settings`.
    """

    def __init__(
        self,
        max_iter: int,
        classes: Sequence[str] | None,
        settings: Mapping[str, Any] | None = None,
    ):
        self.max_iter = max_iter
        self.classes = None if classes is None else list(classes)
        self.settings = dict(settings or {})

    def state_dict(self) -> dict[str, Any]:
        return {"max_iter": self.max_iter, "classes": self.classes, "settings": self.settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the run began with other classes, or with the same in another order.
        """
        began = state_dict["classes"]
        if None not in (began, self.classes) and began != self.classes:
            raise ValueError(
                f"expected the classes that the run began with, {_shown(began)}, found "
                f"{_shown(self.classes)} in dataloader.train. Give these data the classes of the "
                f"run, in the same order, or set another train.output_dir for a new run."
            )
        if state_dict["max_iter"] != self.max_iter:
            logger.warning(
                "--resume: the run began with train.max_iter=%d, the config has %d. The schedules "
                "of learning rate and methods follow the new value from here.",
                state_dict["max_iter"],
                self.max_iter,
            )
        before = state_dict.get("settings", self.settings)  # earlier versions have kept none
        for path in dict.fromkeys([*before, *self.settings]):
            began, now = (x.get(path, "nothing") for x in (before, self.settings))
            if began != now:
                logger.warning(
                    "--resume: the run began with %s=%s, the config has %s. The run follows the "
                    "config from here.",
                    *(path, began, now),
                )


def recorded_classes(checkpoint: Any) -> tuple[str, ...]:
    """Names of the classes that a run began with, from its checkpoint; none if it has none."""
    for key in ("trainer", "hooks", RunRecord.__name__, "classes"):
        checkpoint = checkpoint.get(key) if isinstance(checkpoint, Mapping) else None
    return tuple(checkpoint or ())


def _shown(classes: Sequence[str] | None) -> str:
    classes = classes or []
    more = ", ..." if len(classes) > 10 else ""
    return f"{len(classes)} ({', '.join(map(str, classes[:10]))}{more})"


@contextlib.contextmanager
def same_hyperparameters(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Load an optimizer's state in the block; say where it replaces the config's values.

    Raises:
        ValueError: the state is one of another optimizer.
    """
    before = _hyperparameters(optimizer)
    try:
        yield
    except (KeyError, ValueError) as e:
        if isinstance(e, ValueError) and "parameter group" not in str(e):
            raise
        raise ValueError(
            f"expected the state of this config's {type(optimizer).__name__}, found another one "
            f"({e}). Give the optimizer that the run began with."
        ) from e
    after = _hyperparameters(optimizer)
    # The state replaces the names of the values, too; the first step would stop with a KeyError.
    if lost := [name for name in before if name not in after]:
        raise ValueError(
            f"expected the state of this config's {type(optimizer).__name__}, found another one "
            f"(without {', '.join(lost)}). Give the optimizer that the run began with."
        )
    for name, value in after.items():
        if value != before.get(name):
            logger.warning(
                "--resume: the run keeps optimizer.%s=%s from its checkpoint; the config's %s is "
                "not used. For other values, start a new run with train.init_checkpoint.",
                name,
                value,
                before.get(name),
            )


def _hyperparameters(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Values that a config sets and that a resumed run takes from its checkpoint."""
    values = {}
    for name in ("lr", "momentum", "weight_decay", "betas"):
        # A scheduler changes `lr` and keeps the config's as `initial_lr`.
        keys = ("initial_lr", "lr") if name == "lr" else (name,)
        found = {next((g[k] for k in keys if k in g), None) for g in optimizer.param_groups}
        known = sorted(x for x in found if x is not None)
        if known:
            values[name] = known[0] if len(known) == 1 else known
    return values
