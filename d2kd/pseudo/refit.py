"""Thresholds that are fitted again while the student trains."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor

from ..matching import Detections, GroundTruth
from .thresholds import FixedThresholds, ThresholdRule, Thresholds

__all__ = ["ThresholdFits"]

logger = logging.getLogger(__name__)


class ThresholdFits:
    """The present thresholds of a mean teacher, and the detections on which they are fitted.

    All processes of a training fit on the
    same images, so that they use the same thresholds.

    Args:
        rule: see `d2kd.pseudo.thresholds`. Fixed thresholds are there from the beginning.
        period: steps between two fits. Until the window is full, there is also a fit whenever the
            number of its images has doubled, because the first fits see few images.
        window: a fit uses the detections in this many of the latest images.
        num_classes: K.

    Attributes:
        thresholds: of the last fit; None before the first.

    Raises:
        ValueError: fixed thresholds have impossible values.
    """

    def __init__(self, rule: ThresholdRule, period: int, window: int, num_classes: int):
        self.rule = rule
        self._every_class = np.ones(num_classes, dtype=bool)
        self.period = period
        self.thresholds: Thresholds | None = None
        self._found: deque[Detections] = deque(maxlen=window)  # in images that lack labels
        self._known: deque[tuple[Detections, GroundTruth]] = deque(maxlen=window)
        self._fitted_on = 0  # images in the last fit
        if isinstance(rule, FixedThresholds):
            try:
                self.thresholds = rule.fit([], None, self._every_class)
            except ValueError as e:
                raise type(e)(f"train.mean_teacher.{e}") from None

    @property
    def needs_truths(self) -> bool:
        """Whether `update` needs labeled images."""
        return getattr(self.rule, "needs_truths", False)

    def update(
        self,
        step: int,
        found: list[Detections],
        known: list[tuple[Detections, GroundTruth]],
    ) -> Thresholds | None:
        """Add the detections of a batch, fit the thresholds if it is time to, and return them.

        Args:
            step: of the training, from 0.
            found: detections in each image that lacks labels.
            known: detections in each labeled image, with its true boxes.
        """
        if isinstance(self.rule, FixedThresholds):
            return self.thresholds
        for more_found, more_known in comm.all_gather((found, known)):
            self._found.extend(more_found)
            self._known.extend(more_known)
        truths = [truth for _, truth in self._known]
        detections: Sequence[Detections] = (
            [own for own, _ in self._known]
            if getattr(self.rule, "same_images", False)
            else list(self._found)
        )
        # Between two periods, only a window that has doubled is worth a fit.
        if step % self.period and len(detections) < 2 * self._fitted_on:
            return self.thresholds
        if not detections or (self.needs_truths and not truths):
            return self.thresholds
        self._fitted_on = len(detections)
        try:
            self.thresholds = self.rule.fit(detections, truths or None, self._every_class)
        except ValueError as e:  # for example, no box is correct yet
            logger.warning("mean teacher: step %d: no new thresholds. %s", step, e)
        return self.thresholds

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "fitted_on": self._fitted_on,
            "found": [_tensors(d) for d in self._found],
            "known": [
                {**_tensors(d), "true_boxes": _tensor(t.boxes), "true_classes": _tensor(t.classes)}
                for d, t in self._known
            ],
        }
        if self.thresholds is not None:
            state["thresholds"] = {n: _tensor(getattr(self.thresholds, n)) for n in ("high", "low")}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keys of other parts of the hook are passed over."""
        self._fitted_on = state_dict.get("fitted_on", 0)  # 0: a checkpoint of an earlier version
        self._found.extend(_detections(row) for row in state_dict["found"])
        self._known.extend(
            (_detections(x), GroundTruth(x["true_boxes"].numpy(), x["true_classes"].numpy()))
            for x in state_dict["known"]
        )
        # Fixed thresholds are the config's, which may have changed.
        if "thresholds" in state_dict and not isinstance(self.rule, FixedThresholds):
            saved = state_dict["thresholds"]
            self.thresholds = Thresholds(saved["high"].numpy(), saved["low"].numpy())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array)


def _tensors(found: Detections) -> dict[str, Tensor]:
    return {name: _tensor(getattr(found, name)) for name in ("boxes", "scores", "classes")}


def _detections(row: dict[str, Tensor]) -> Detections:
    return Detections(**{n: row[n].numpy() for n in ("boxes", "scores", "classes")})
