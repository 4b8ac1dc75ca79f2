"""Check that the parts of a detector agree on its numbers of classes and anchors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from detectron2.modeling import ROIHeads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator import RPN
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..lazy import resolve_target
from .names import nodes

__all__ = ["check_heads"]

# Kind of detector or part -> its own parts that have as many classes.
_PARTS: dict[type, tuple[str, ...]] = {
    DenseDetector: ("head",),
    ROIHeads: ("box_predictor", "box_predictors", "mask_head"),
}


def check_heads(model: Any) -> None:
    """Compare `num_classes` of a detector with that of its heads, and their numbers of anchors.

    Otherwise, the first step or the first evaluation would stop at shapes that do not fit.

    Args:
        model: the section `model` of a config. Students and teachers in it are checked, too.

    Raises:
        ValueError: the message names the field, what was expected and what was found.
    """
    for path, node in nodes(model, "model"):
        target = resolve_target(node) if "_target_" in node else None
        if not isinstance(target, type):
            continue
        if issubclass(target, (RetinaNet, RPN)):
            _check_anchors(path, node)
        number = node.get("num_classes")
        if not isinstance(number, int):
            continue
        parts = [
            name for kind, names in _PARTS.items() if issubclass(target, kind) for name in names
        ]
        for where, part in _find(node, parts):
            found = part.get("num_classes")
            if where == "mask_head" and found == 1:
                continue  # the same masks for all classes
            if isinstance(found, int) and found != number:
                raise ValueError(
                    f"{path}.{where}.num_classes: expected {number}, as {path}.num_classes says, "
                    f"found {found}. Set both alike."
                )


def _check_anchors(path: str, node: DictConfig) -> None:
    found = OmegaConf.select(node, "head.num_anchors")
    generator = node.get("anchor_generator")
    if not isinstance(found, int) or not isinstance(generator, DictConfig):
        return
    if resolve_target(generator) is not DefaultAnchorGenerator:
        return
    fields = [generator.get(name) for name in ("sizes", "aspect_ratios")]
    if not all(isinstance(x, ListConfig) and len(x) for x in fields):
        return
    # One list for each level, or one for all of them.
    sizes, ratios = (
        [len(y) for y in x] if all(isinstance(y, ListConfig) for y in x) else [len(x)]
        for x in fields
    )
    if len(sizes) != len(ratios) and 1 not in (len(sizes), len(ratios)):
        return  # building the model says what is wrong
    pairs = itertools.zip_longest(
        sizes, ratios, fillvalue=sizes[0] if len(sizes) == 1 else ratios[0]
    )
    counts = sorted({a * b for a, b in pairs})
    if counts != [found]:
        raise ValueError(
            f"{path}.head.num_anchors: expected {' and '.join(map(str, counts))}, the anchors of a "
            f"cell by {path}.anchor_generator.sizes and {path}.anchor_generator.aspect_ratios, "
            f"found {found}. Set them alike."
        )


def _find(node: DictConfig, names: list[str]) -> Iterator[tuple[str, DictConfig]]:
    for name in names:
        part = node.get(name)
        if isinstance(part, DictConfig):
            yield name, part
        elif isinstance(part, ListConfig):
            for i, item in enumerate(part):
                if isinstance(item, DictConfig):
                    yield f"{name}[{i}]", item
