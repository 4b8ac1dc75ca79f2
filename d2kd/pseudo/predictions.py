"""Read the raw predictions of all teachers, fit thresholds to them, and fuse them into labels.

One unit of images is in memory at a time. Shapes: T teachers, K classes of the student.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..data.manifest import Image, Manifest
from ..matching import Detections, GroundTruth
from .cache import RawCache, Unit
from .categories import CategoryMap
from .fuse import Fusion, Labels
from .thresholds import FBetaThresholds, ThresholdRule, Thresholds

__all__ = ["FusedLabels", "Predictions", "fit_thresholds"]


class Predictions:
    """The detections of T teachers in the same images, with the student's class indices.

    One unit of each teacher is kept in memory. Ask for images in the order of `images`: another
    order reads units again and again.

    Args:
        manifest: the images.
        caches: one of each teacher, in which all units are done.
        maps: one of each teacher.

    Attributes:
        images: the images that all teachers could read, with their true height and width.
        rejected: (path, reason) of the other images.
        owned: (T, K) bool, the classes that each teacher knows.

    Raises:
        ValueError: a unit is not done, or the caches hold other images or units of other sizes.
    """

    def __init__(self, manifest: Manifest, caches: Sequence[RawCache], maps: Sequence[CategoryMap]):
        kinds = {(c.settings["images"], c.settings["unit_size"]) for c in caches}
        if kinds != {(manifest.digest, caches[0].settings["unit_size"])}:
            raise ValueError(
                f"{manifest.name}: expected caches of these images in units of one size, found "
                f"caches of {len(kinds)} kinds. Label again with one labels.unit_size."
            )
        self._caches, self._maps = caches, maps
        self._last: tuple[int, list[Unit]] = (-1, [])
        self._unit_of: dict[int, int] = {}
        self.owned = np.stack([m.owned for m in maps])
        self.images: list[Image] = []
        self.rejected = list(manifest.rejected)
        for index, images in enumerate(manifest.units(caches[0].settings["unit_size"])):
            units = self._read(index)
            for image in images:
                reasons = [
                    u.rejected[image.image_id] for u in units if image.image_id in u.rejected
                ]
                if reasons:
                    self.rejected.append((image.file_name, reasons[0]))
                    continue
                height, width = units[0].sizes[image.image_id]
                self.images.append(replace(image, height=height, width=width))
                self._unit_of[image.image_id] = index

    def __getitem__(self, image_id: int) -> list[Detections]:
        """The detections of each of the T teachers in one image."""
        units = self._read(self._unit_of[image_id])
        return [m.apply(u.detections[image_id]) for m, u in zip(self._maps, units, strict=True)]

    def by_teacher(self, teacher: int, images: Iterable[Image]) -> Iterator[Detections]:
        """The detections of one teacher (an index) in each of the images."""
        for image in images:
            unit = self._read(self._unit_of[image.image_id])[teacher]
            yield self._maps[teacher].apply(unit.detections[image.image_id])

    def files(self) -> list[str]:
        """Paths of the unit files of all teachers."""
        return [str(f) for cache in self._caches for f in sorted(cache.folder.glob("unit_*.npz"))]

    def _read(self, index: int) -> list[Unit]:
        if self._last[0] != index:
            self._last = index, [cache.read(index) for cache in self._caches]
        return self._last[1]


class FusedLabels(Mapping[int, Labels]):
    """A mapping from image id to labels. The labels of an image are fused when you ask for them."""

    def __init__(self, predictions: Predictions, thresholds: Sequence[Thresholds], fusion: Fusion):
        self._predictions, self._thresholds, self._fusion = predictions, thresholds, fusion
        self._sizes = {i.image_id: (i.height, i.width) for i in predictions.images}

    def __getitem__(self, image_id: int) -> Labels:
        size = self._sizes[image_id]  # raises KeyError for an unknown id, as a mapping should
        detections = self._predictions[image_id]
        return self._fusion(detections, self._predictions.owned, self._thresholds, size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def fit_thresholds(
    rules: Sequence[ThresholdRule],
    predictions: Predictions,
    images: Sequence[Image],
    labeled: Predictions | None = None,
    truths: Mapping[int, GroundTruth] | None = None,
) -> list[Thresholds]:
    """Fit the thresholds of each of the T teachers.

    Args:
        rules: one of each teacher; see `d2kd.pseudo.thresholds`.
        predictions: for the images that are to be labeled.
        images: the part of these images to fit on.
        labeled: predictions for images that have ground truth. `FBetaThresholds` are fitted on
            them, the other rules on the images that are to be labeled.
        truths: image id -> the objects in the labeled images, with the student's class indices.

    Raises:
        ValueError: `FBetaThresholds` without labeled images.
    """
    fitted, truths = [], truths or {}
    for teacher, rule in enumerate(rules):
        detections = predictions.by_teacher(teacher, images)
        objects = list(truths.values()) or None
        if isinstance(rule, FBetaThresholds) and labeled is not None:
            known = [image for image in labeled.images if image.image_id in truths]
            detections = labeled.by_teacher(teacher, known)
            objects = [truths[image.image_id] for image in known]
        fitted.append(rule.fit(detections, objects, predictions.owned[teacher]))
    return fitted
