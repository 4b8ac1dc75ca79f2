"""Rehearse an evaluation before training: a mistake in it must not show after days of training.

Shapes: K classes of the detector, N made-up detections of one image.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig

from ..lazy import resolve_target
from .crowdhuman import CrowdHumanEvaluator

__all__ = ["build_evaluator", "evaluator_nodes", "is_certain", "rehearse", "takes_image_ids"]

MASKED = 32  # at most this many made-up detections of an image have masks, which are large
KEYPOINTS = 17  # of COCO's people; used where the data set does not name its own


def evaluator_nodes(node: Any) -> list[DictConfig]:
    """The nodes of a config's evaluators: `dataloader.evaluator` may be one or a list."""
    nodes = list(node) if isinstance(node, (list, tuple, ListConfig)) else [node]
    return [n for n in nodes if isinstance(n, DictConfig) and "_target_" in n]


def _accepts(target: Any, name: str) -> bool:
    try:
        return name in inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False


def takes_image_ids(node: DictConfig) -> bool:
    """Whether an evaluator can be restricted to some images, as COCO's can."""
    return _accepts(getattr(resolve_target(node), "evaluate", None), "img_ids")


def build_evaluator(node: Any, **fields: Any) -> DatasetEvaluator:
    """Build `dataloader.evaluator`. Unless it says otherwise, no cached annotations are used.

    For a dataset without a COCO file, Detectron2's `COCOEvaluator` writes one to its output_dir,
    and would use the one of an earlier run, although the data may have changed since.

    Args:
        node: the node, or a list of nodes.
        fields: replace fields of the nodes whose target has them.
    """
    if isinstance(node, (list, tuple, ListConfig)):
        return DatasetEvaluators([build_evaluator(x, **fields) for x in node])
    if not (isinstance(node, (dict, DictConfig)) and "_target_" in node):
        return instantiate(node)
    target = resolve_target(node)
    values = {str(k): v for k, v in node.items()}
    if _accepts(target, "allow_cached_coco"):
        values.setdefault("allow_cached_coco", False)
    values.update({k: v for k, v in fields.items() if _accepts(target, k)})
    return instantiate(values)


def rehearse(
    node: DictConfig, records: Sequence[Mapping[str, Any]], num_classes: int
) -> tuple[str, list[str]]:
    """Give an evaluator made-up detections of every class, for the first two images.

    The evaluator works in this process alone, and writes to a temporary folder.

    Args:
        node: of one evaluator.
        records: the test set.
        num_classes: K.

    Returns:
        What went wrong; "" if nothing did, or if this evaluator cannot be rehearsed: one that
        exchanges data between processes and cannot be told not to. And the metrics that it gave,
        such as "bbox/AP"; none if it was not rehearsed.
    """
    target = resolve_target(node)
    if comm.get_world_size() > 1 and not _accepts(target, "distributed"):
        return "", []
    images = [x for x in records if x.get("annotations")][:2] or list(records[:2])
    images = [x for x in images if "image_id" in x]
    if not images:
        return "", []
    tasks = node.get("tasks") or ()
    fields: dict[str, Any] = {"distributed": False}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        try:
            evaluator = build_evaluator(node, **fields)
            if node.get("output_dir"):
                # The first one has written the COCO file of a dataset that has none. The second one
                # writes the detections, to the temporary folder.
                evaluator = build_evaluator(node, **fields, output_dir=folder)
            evaluator.reset()
            outputs = [_detections(x, num_classes, tasks, node) for x in images]
            evaluator.process([dict(x) for x in images], outputs)
            options = {}
            if _accepts(evaluator.evaluate, "img_ids"):
                options["img_ids"] = [x["image_id"] for x in images]
            results = evaluator.evaluate(**options)
            return "", list(flatten_results_dict(results or {}))
        except Exception as error:  # whatever evaluators raise
            return f"{type(error).__name__}: {error}", []


def is_certain(node: DictConfig, error: str = "") -> bool:
    """Whether the real evaluation would fail, too, or give the same metrics.

    Other evaluators than those that we know may expect other detections than the made-up ones.
    """
    known = resolve_target(node) in (COCOEvaluator, CrowdHumanEvaluator)
    return known or error.startswith(("ImportError", "ModuleNotFoundError"))


def _detections(
    image: Mapping[str, Any], num_classes: int, tasks: Sequence[str], node: DictConfig
) -> dict[str, Instances]:
    height, width = int(image.get("height") or 64), int(image.get("width") or 64)
    classes = torch.arange(num_classes)
    if "segm" in tasks:
        classes = torch.unique(torch.cat([classes[:MASKED], classes[-1:]]))
    count = len(classes)
    found = Instances((height, width))
    box = [width * 0.25, height * 0.25, width * 0.75, height * 0.75]
    found.pred_boxes = Boxes(torch.tensor([box] * count, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.linspace(0.9, 0.5, count)
    found.pred_classes = classes
    if "segm" in tasks:
        found.pred_masks = torch.ones(count, height, width, dtype=torch.bool)
    if "keypoints" in tasks:
        names = MetadataCatalog.get(str(node.get("dataset_name"))).get("keypoint_names", None)
        points = len(node.get("kpt_oks_sigmas") or names or range(KEYPOINTS))
        found.pred_keypoints = torch.ones(count, points, 3)
    return {"instances": found}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tables of a made-up evaluation out of terminal and log."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
