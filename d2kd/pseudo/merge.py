"""From the raw predictions of several teachers to labels, a unit of images at a time.

Shapes: T teachers, K classes of the student.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..data.manifest import Image, Manifest
from ..matching import Truth
from .cache import RawCache, Unit
from .categories import CategoryMap
from .fuse import Fusion
from .records import Found, Labels
from .thresholds import Bars, FBetaBars

__all__ = ["FusedLabels", "Predictions", "fit_bars"]


class Predictions:
    """What T teachers found in the same images, with the student's class indices.

    One unit of each teacher is in memory at a time: ask in the order of `images`.

    Args:
        manifest: the images.
        caches: of T teachers, with all units done.
        maps: of T teachers.

    Attributes:
        images: those that all teachers could read, with their true height and width.
        rejected: (path, reason) of the others.
        owned: (T, K) bool, the classes that each teacher knows.

    Raises:
        ValueError: a unit is not done, or the caches hold other images or units.
    """

    def __init__(self, manifest: Manifest, caches: Sequence[RawCache], maps: Sequence[CategoryMap]):
        kinds = {(c.settings["images"], c.settings["unit_size"]) for c in caches}
        if kinds != {(manifest.digest, caches[0].settings["unit_size"])}:
            raise ValueError(
                f"{manifest.name}: expected caches of these images in units of one size, found "
                f"those of {len(kinds)} kinds. Label again with one labels.unit_size."
            )
        self._caches, self._maps = caches, maps
        self._last: tuple[int, list[Unit]] = (-1, [])
        self._unit_of: dict[int, int] = {}
        self.owned = np.stack([m.owned for m in maps])
        self.images: list[Image] = []
        self.rejected = list(manifest.rejected)
        for unit, images in enumerate(manifest.units(caches[0].settings["unit_size"])):
            read = self._read(unit)
            for image in images:
                reasons = [u.rejected[image.image_id] for u in read if image.image_id in u.rejected]
                if reasons:
                    self.rejected.append((image.file_name, reasons[0]))
                    continue
                height, width = read[0].sizes[image.image_id]
                self.images.append(replace(image, height=height, width=width))
                self._unit_of[image.image_id] = unit

    def __getitem__(self, image_id: int) -> list[Found]:
        """T times what a teacher found in one image."""
        units = self._read(self._unit_of[image_id])
        return [m.apply(u.found[image_id]) for m, u in zip(self._maps, units, strict=True)]

    def of(self, teacher: int, images: Iterable[Image]) -> Iterator[Found]:
        """What one teacher found in each of the images."""
        for image in images:
            unit = self._read(self._unit_of[image.image_id])[teacher]
            yield self._maps[teacher].apply(unit.found[image.image_id])

    def files(self) -> list[str]:
        """The units of all teachers."""
        return [str(f) for cache in self._caches for f in sorted(cache.folder.glob("unit_*.npz"))]

    def _read(self, unit: int) -> list[Unit]:
        if self._last[0] != unit:
            self._last = unit, [cache.read(unit) for cache in self._caches]
        return self._last[1]


class FusedLabels(Mapping[int, Labels]):
    """Image id -> labels, fused when they are asked for."""

    def __init__(self, predictions: Predictions, bars: Sequence[Bars], fusion: Fusion):
        self._predictions, self._bars, self._fusion = predictions, bars, fusion
        self._sizes = {i.image_id: (i.height, i.width) for i in predictions.images}

    def __getitem__(self, image_id: int) -> Labels:
        size = self._sizes[image_id]  # KeyError for others, as a mapping should
        found = self._predictions[image_id]
        return self._fusion(found, self._predictions.owned, self._bars, size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def fit_bars(
    kinds: Sequence,
    predictions: Predictions,
    images: Sequence[Image],
    labelled: Predictions | None = None,
    truths: Mapping[int, Truth] | None = None,
) -> list[Bars]:
    """Fit the bars of T teachers, each of a kind that `d2kd.pseudo.thresholds` has.

    Args:
        kinds: T of them.
        predictions: for the images that are to be labelled.
        images: those of them that are looked at.
        labelled: predictions for images that have truths. `FBetaBars` are fitted there, the others
            on the images that are to be labelled.
        truths: image id -> what is in the labelled images, with the student's class indices.

    Raises:
        ValueError: `FBetaBars` without labelled images.
    """
    fitted, truths = [], truths or {}
    for teacher, kind in enumerate(kinds):
        found, true = predictions.of(teacher, images), list(truths.values()) or None
        if isinstance(kind, FBetaBars) and labelled is not None:
            known = [image for image in labelled.images if image.image_id in truths]
            found = labelled.of(teacher, known)
            true = [truths[image.image_id] for image in known]
        fitted.append(kind.fit(found, true, predictions.owned[teacher]))
    return fitted
