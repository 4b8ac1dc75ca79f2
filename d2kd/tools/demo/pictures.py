"""The columns of the demo's picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from d2kd.matching import Detections, GroundTruth
from d2kd.visualize import (
    Column,
    draw_detections,
    draw_heat,
    key_regions,
    spatial_attention,
)

__all__ = ["View", "distillation_columns"]


class View(NamedTuple):
    """One detector in `distillation_columns`.

    Attributes:
        title: the heading of its column.
        subtitle: the line below the heading.
        detections: image id -> what it detected.
    """

    title: str
    subtitle: str
    detections: Mapping[Any, Detections]


def distillation_columns(
    views: Sequence[View],
    teacher: nn.Module,
    inputs: Mapping[Any, Mapping[str, Any]],
    truths: Mapping[Any, GroundTruth],
    names: Sequence[str],
    *,
    tau: float = 0.5,
) -> list[Column]:
    """Columns for `compose_sheet`: the detections of each detector, the attention of the teacher
    and the key regions.

    Args:
        teacher: a detector that `d2kd.readers.get_reader` knows.
        inputs: image id -> one of Detectron2's input dicts, with an RGB image. Each is a row.
        truths: image id -> objects.
        names: of the classes.
        tau: temperature of the attention, as in FGD.
    """
    images = {i: x["image"].permute(1, 2, 0).cpu().numpy() for i, x in inputs.items()}

    def boxes(view: View, i: Any) -> Callable[[Any], None]:
        return lambda ax: draw_detections(ax, images[i], view.detections[i], truths[i], names)

    def attention(i: Any) -> Callable[[Any], None]:
        heat = spatial_attention(teacher, inputs[i], tau=tau)
        return lambda ax: draw_heat(ax, images[i], heat)

    def regions(i: Any) -> Callable[[Any], None]:
        weights = key_regions(teacher, inputs[i], truths[i])
        # A weight is 1 / area. Without the root, one small box would leave the large ones black.
        return lambda ax: draw_heat(ax, images[i], np.sqrt(weights), cmap="viridis", opacity=0.6)

    return [
        *(Column(v.title, v.subtitle, [boxes(v, i) for i in inputs]) for v in views),
        Column(
            "Teacher's attention", "where its finest map is strong", [attention(i) for i in inputs]
        ),
        Column("Key regions", "brighter cells weigh more", [regions(i) for i in inputs]),
    ]
