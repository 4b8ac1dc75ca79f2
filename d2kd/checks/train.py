"""Check names and values of `train`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.engine.hooks import PeriodicCheckpointer
from omegaconf import DictConfig
from torch.nn.parallel import DistributedDataParallel

from ..values import check_choice, check_flag, check_number
from .kinds import check_value, read_value
from .names import nearest

__all__ = ["check_train"]


def _whole(least: float | None, other: str = "") -> Callable[[str, Any], Any]:
    def check(field: str, value: Any) -> None:
        if value is not None or not other:
            check_number(field, value, least=least, whole=True, other=other)

    return check


def _number(**limits: Any) -> Callable[[str, Any], Any]:
    return lambda field, value: check_number(field, value, **limits)


def _seed(field: str, value: Any) -> None:
    check_number(field, value, least=None, whole=True)
    check_number(field, value, least=None, most=2**32 - 1)  # what numpy takes


def _text(field: str, value: Any) -> None:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"{field}: expected a text that is not empty, found {value!r}.")


def _text_or_none(field: str, value: Any) -> None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{field}: expected a path, a URL or '' for none, found {value!r}.")


def _metric(field: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field}: expected a metric such as 'bbox/AP' or '', found {value!r}.")
    if value and value.startswith("ema/"):
        raise ValueError(
            f"{field}: expected the name of a metric without 'ema/', found {value!r}. Write "
            f"{value.removeprefix('ema/')!r}: student_ema_best.pth is chosen by this metric of the "
            f"average, and student_best.pth by this metric of the student."
        )


def _node(field: str, value: Any) -> None:
    if value is not None and not (isinstance(value, DictConfig) and "_target_" in value):
        raise ValueError(
            f"{field}: expected L(MeanTeacher)(burn_in=...) or None, found {value!r}. A command "
            f"line can change its fields, such as {field}.burn_in=1000."
        )


def _options(field: str, value: Any) -> None:
    if value is not None and (not isinstance(value, (DictConfig, Mapping)) or "_target_" in value):
        raise ValueError(
            f"{field}: expected a dict of options, {{}} for none of them, or None to leave it out, "
            f"found {value!r}."
        )


def _device(field: str, value: Any) -> None:
    try:
        kind = torch.device(value).type if isinstance(value, str) else "none"
    except RuntimeError:
        kind = "none"
    if kind in ("none", "meta"):
        raise ValueError(
            f"{field}: expected a device such as cuda, cuda:1 or cpu, found {value!r}."
        )


# configs/common/train.py explains these fields. The last two are Detectron2's, without a default.
_TRAIN: dict[str, Callable[[str, Any], Any]] = {
    "output_dir": _text,
    "init_checkpoint": _text_or_none,
    "device": _device,
    "seed": _seed,
    "max_iter": _whole(1),
    "accumulate": _whole(1),
    "clip_grad_norm": _number(),
    "amp.enabled": check_flag,
    "amp.dtype": lambda field, value: check_choice(field, value, ("float16", "bfloat16")),
    "ema.decay": _number(below=1),
    "mean_teacher": _node,
    "best_metric": _metric,
    "teacher_check.images": _whole(0),
    "teacher_check.min_ap": _number(most=100),
    "checkpointer.period": _whole(1),
    "checkpointer.max_to_keep": _whole(1, other="None"),
    "eval_period": _whole(0),
    "log_period": _whole(1),
    "pictures.period": _whole(0),
    "pictures.images": _whole(1),
    "pictures.threshold": _number(most=1),
    "writers.wandb": _options,
    "writers.mlflow": _options,
    "ddp.broadcast_buffers": check_flag,
    "ddp.find_unused_parameters": check_flag,
    "ddp.fp16_compression": check_flag,
    "cudnn_benchmark": check_flag,
    "float32_precision": _text_or_none,
}
# What else these sections may contain is passed on to a class.
_PASSED_ON = {"ddp": DistributedDataParallel, "checkpointer": PeriodicCheckpointer}


def check_train(train: Any) -> None:
    """Check the names and values of `train`. Fields that are left out are not missed.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    _check_section("train", train, _TRAIN)
    for section, target in _PASSED_ON.items():
        for name, value in train.get(section, {}).items():
            if f"{section}.{name}" not in _TRAIN:
                parameter = inspect.signature(target).parameters[str(name)]
                check_value(f"train.{section}.{name}", value, None, parameter.default)


def _check_section(
    path: str, section: Any, checks: Mapping[str, Callable], prefix: str = ""
) -> None:
    names = list(
        dict.fromkeys(k[len(prefix) :].split(".")[0] for k in checks if k.startswith(prefix))
    )
    if not isinstance(section, (DictConfig, Mapping)):
        raise ValueError(f"{path}: expected the fields {', '.join(names)}, found {section!r}.")
    passed_on = _PASSED_ON.get(prefix.rstrip("."))
    more = list(inspect.signature(passed_on).parameters)[1:] if passed_on else []
    for name in map(str, section):
        field, value = f"{path}.{name}", read_value(section, name, f"{path}.{name}")
        if f"{prefix}{name}" in checks:
            checks[f"{prefix}{name}"](field, value)
        elif name in names:
            _check_section(field, value, checks, f"{prefix}{name}.")
        elif name not in more:
            raise ValueError(
                f"{field}: expected a field of {path} ({', '.join(names)}), found {name!r}."
                f"{nearest(name, names)} "
                f"Fields of your own belong into another section than `train`."
            )
