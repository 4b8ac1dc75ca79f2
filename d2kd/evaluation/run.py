"""Evaluate students and teachers with the evaluator of their config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from torch import nn

from ..data.named_errors import build_loader
from ..distiller import Distiller
from ..finite import non_finite_names
from .rehearsal import build_evaluator, evaluator_nodes, takes_image_ids

__all__ = ["check_teacher", "evaluate", "teacher_of"]

logger = logging.getLogger(__name__)


def evaluate(cfg, model: nn.Module | Callable, more: Sequence[DatasetEvaluator] = ()) -> dict:
    """Evaluate a model on the config's `dataloader.test` by its `dataloader.evaluator`.

    Args:
        more: further evaluators, whose results are added.

    Returns:
        the results of the evaluator; empty if the config has no evaluator, or if a parameter of the
        model is not finite, which the log says.
    """
    if "evaluator" not in cfg.dataloader:
        return {}
    # Detectron2 evaluates after the last step even if that step has failed.
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    if bad := non_finite_names(parameters):
        logger.error(
            "Not evaluated: expected finite weights, found NaN or infinite values in %d of %d "
            "parameters.",
            len(bad),
            len(parameters),
        )
        return {}
    evaluator = build_evaluator(cfg.dataloader.evaluator)
    if more:
        evaluator = DatasetEvaluators([evaluator, *more])
    results = inference_on_dataset(model, build_loader(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def teacher_of(model: nn.Module) -> Callable[[Sequence[dict]], list[dict]]:
    """The teacher of a distiller, as a function that `evaluate` can call like a detector.

    Raises:
        ValueError: the model has no teacher.
    """
    if not isinstance(model, Distiller) or model.teacher is None:
        raise ValueError(
            f"expected a config whose model is a Distiller with a teacher, found "
            f"{type(model).__name__}"
        )
    device = next(model.parameters()).device
    teacher, input_format = model.teacher.to(device), model.input_format
    return lambda batched_inputs: teacher.detect(batched_inputs, input_format=input_format)


class _OnSomeImages(DatasetEvaluator):
    """Restricts an evaluator that has COCOEvaluator's interface to some of its images."""

    def __init__(self, evaluator: DatasetEvaluator, image_ids: list):
        self._evaluator, self._image_ids = evaluator, image_ids

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list, outputs: list) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> dict:
        return self._evaluator.evaluate(img_ids=self._image_ids)


def check_teacher(cfg, model: Any) -> None:
    """Stop before training if the teacher detects worse than expected.

    The teacher is evaluated on the first `train.teacher_check.images` validation images; 0 skips
    the check. A wrong channel order or wrong weights show here, and not after days of training.

    Raises:
        ValueError: its box AP is below `train.teacher_check.min_ap` (in percent).
    """
    check = cfg.train.teacher_check
    if not check.images:
        return
    detect = teacher_of(model)
    test = {k: v for k, v in cfg.dataloader.test.items() if k != "dataset"}
    test["dataset"] = instantiate(cfg.dataloader.test.dataset)[: check.images]
    image_ids = [x["image_id"] for x in test["dataset"]]
    node = cfg.dataloader.evaluator
    # Of several evaluators, only one of COCO's interface can be restricted to some images.
    node = next((n for n in evaluator_nodes(node) if takes_image_ids(n)), node)
    evaluator = _OnSomeImages(build_evaluator(node), image_ids)
    results = inference_on_dataset(detect, build_loader(test), evaluator)
    if not comm.is_main_process():
        return
    ap = results["bbox"]["AP"]
    logger.info("Teacher's AP on %d validation images: %.1f", len(image_ids), ap)
    if not ap >= check.min_ap:
        raise ValueError(
            f"teacher: expected AP >= {check.min_ap:g} on {len(image_ids)} validation images "
            f"(train.teacher_check), found {ap:.1f}. Check its weights, its config and its "
            f"input_format ({model.teacher.input_format})."
        )
