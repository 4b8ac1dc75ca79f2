"""Check the schedule of the learning rate."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import instantiate
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, ListConfig

from ..lazy import resolve_target
from ..values import check_number, is_number

__all__ = ["check_schedule"]

logger = logging.getLogger(__name__)


def check_schedule(cfg: DictConfig, nodes: Sequence[tuple[str, DictConfig]]) -> None:
    """Check milestones, and that the learning rate's multiplier is a finite number >= 0 throughout.

    Args:
        cfg: the config, with `lr_multiplier` and `train.max_iter`.
        nodes: of `cfg.lr_multiplier`, with their paths in the config.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    steps = cfg.train.max_iter
    for path, node in nodes:
        if "_target_" in node and resolve_target(node) is MultiStepParamScheduler:
            _check_milestones(path, node, steps)
    try:
        schedule = instantiate(cfg.lr_multiplier)
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"lr_multiplier: expected a schedule that can be built, found {type(error).__name__}: "
            f"{error}"
        ) from error
    if not callable(schedule):
        raise ValueError(
            f"lr_multiplier: expected a scheduler of fvcore.common.param_scheduler, found "
            f"{type(schedule).__name__}."
        )
    # Detectron2 also asks for the step after the last one, and fvcore's StepParamScheduler fails.
    for step in dict.fromkeys([0, steps // 4, steps // 2, steps * 3 // 4, steps - 1, steps]):
        try:
            factor = schedule(step / steps)
        except (ArithmeticError, IndexError) as error:
            factor = f"{type(error).__name__}: {error}"
        if not is_number(factor) or factor < 0:
            raise ValueError(
                f"lr_multiplier: expected a finite factor >= 0 at step {step} of {steps}, found "
                f"{factor!r}."
            )


def _check_milestones(path: str, node: DictConfig, steps: int) -> None:
    values, milestones = node.get("values"), node.get("milestones")
    total = node.get("num_updates")
    if not isinstance(values, (ListConfig, list, tuple)) or not values:
        raise ValueError(f"{path}.values: expected a list of factors, found {values!r}.")
    for value in values:
        check_number(f"{path}.values", value)
    if total is not None:
        check_number(f"{path}.num_updates", total, least=len(values), whole=True)
    if milestones is None:
        return  # equal parts of num_updates
    count = len(values) - (total is not None)
    if not isinstance(milestones, (ListConfig, list, tuple)) or len(milestones) != count:
        why, fix = "", ""
        if total is None:
            why = ", because without num_updates the last milestone is the end of training"
            fix = f" Add num_updates={steps} (train.max_iter), or the end as last milestone."
        raise ValueError(
            f"{path}.milestones: expected a list of {count} numbers for {len(values)} values{why}, "
            f"found {milestones!r}.{fix}"
        )
    for value in milestones:
        check_number(f"{path}.milestones", value, above=0)
    ordered = all(a < b for a, b in zip(milestones, list(milestones)[1:], strict=False))
    if not ordered or (total is not None and milestones and milestones[-1] >= total):
        end = f" below num_updates={total}" if total is not None else ""
        raise ValueError(
            f"{path}.milestones: expected increasing numbers{end}, found {list(milestones)}."
        )
    named = f"num_updates={total}"
    if total is None:
        *milestones, total = milestones
        named = f"the last one, {total}, which is the end of training without num_updates"
    if total != steps:
        dates = ", ".join(str(round(m / total * steps)) for m in milestones)
        logger.warning(
            "%s: milestones are shares of %s. With train.max_iter=%d, the learning rate changes at "
            "step %s.",
            *(path, named, steps, dates or "none"),
        )
