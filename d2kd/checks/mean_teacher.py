"""Check what `train.mean_teacher` needs from the other sections of a config."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetMapper
from omegaconf import DictConfig, OmegaConf

from ..data import PartialMapper, TwoSizeMapper
from ..lazy import resolve_target

__all__ = ["check_mean_teacher"]

# Mappers that are known to give no weak view. One of the user may give it.
_WITHOUT_WEAK_VIEW = (DatasetMapper, PartialMapper, TwoSizeMapper)


def check_mean_teacher(cfg: DictConfig) -> None:
    """Check student, average, length of the training and mapper for a mean teacher.

    Args:
        cfg: sections that are left out are not missed, except `model` and `train`.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    node = cfg.train.get("mean_teacher")
    if not node:
        return
    if "student" not in cfg.model:
        raise ValueError(
            "model: expected a Distiller, which masks the losses where the labels of "
            "train.mean_teacher say nothing, found none. Set model=L(Distiller)(student=...)."
        )
    if not OmegaConf.select(cfg, "train.ema.decay"):
        raise ValueError(
            "train.ema.decay: expected a decay, because train.mean_teacher labels by the average "
            "of the student, found 0. Set train.ema=dict(decay=0.999)."
        )
    burn_in, steps = node.get("burn_in"), cfg.train.get("max_iter")
    if None not in (burn_in, steps) and burn_in >= steps:
        raise ValueError(
            f"train.mean_teacher.burn_in: expected fewer steps than train.max_iter, {steps}, found "
            f"{burn_in}. The teacher would never label."
        )
    _check_mapper(OmegaConf.select(cfg, "dataloader.train.mapper"))


def _check_mapper(mapper: Any) -> None:
    if not isinstance(mapper, DictConfig) or "_target_" not in mapper:
        return
    target = resolve_target(mapper)
    if target in _WITHOUT_WEAK_VIEW:
        raise ValueError(
            f"dataloader.train.mapper: expected d2kd.data.TwoViewMapper, whose weak view "
            f"train.mean_teacher labels, found {target.__name__}. Set "
            f"dataloader.train.mapper=L(TwoViewMapper)(strong=[...], ...)."
        )
