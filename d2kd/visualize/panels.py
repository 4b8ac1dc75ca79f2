"""Which panels a picture has: detections, and what each method of a config compares.

Methods compute the maps themselves, so that a panel shows what the loss sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..knowledge import Knowledge
from ..matching import Detections, GroundTruth, suppress_across_classes
from ..methods import FGD, PFI, PGD, RankMimic
from ..targets import Targets
from . import draw
from .maps import LevelMap, upsample
from .networks import Networks
from .pictures import Picture
from .sheet import Column

__all__ = ["columns"]

Draw = Callable[[Any], None]


class Panel(NamedTuple):
    """One drawing under a heading: what `Column` has for one picture."""

    title: str
    subtitle: str
    draw: Draw


@torch.no_grad()
def columns(
    pictures: Sequence[Picture],
    networks: Networks,
    names: Sequence[str],
    *,
    threshold: float = 0.3,
    level: str | None = None,
) -> list[Column]:
    """The columns of a sheet with a row for each picture.

    There are panels for the networks that are there and for the methods between them. What does not
    apply is left out. All networks must be in evaluation mode.

    Args:
        pictures: if one of them has no objects, there are no panels that need objects.
        names: of the classes.
        threshold: least score of a detection that is drawn.
        level: pyramid level of attention, key regions and uncertainty. Default: the finest.

    Raises:
        ValueError: a network has no such level.
    """
    with_objects = all(picture.objects is not None for picture in pictures)
    rows = [
        list(_Panels.of(picture, networks, names, threshold, level, with_objects).all())
        for picture in pictures
    ]
    return [
        Column(panels[0].title, panels[0].subtitle, [panel.draw for panel in panels])
        for panels in zip(*rows, strict=True)
    ]


@dataclass(frozen=True)
class _Panels:
    """The panels of one picture.

    Attributes:
        seen: role -> what the network shows; see `Networks.look`.
        objects: None if no panel that needs objects is drawn.
        targets: the same for the methods; None without methods, too.
    """

    picture: Picture
    networks: Networks
    names: Sequence[str]
    threshold: float
    level: str | None
    seen: Mapping[str, Knowledge]
    objects: GroundTruth | None
    targets: Targets | None

    @classmethod
    def of(
        cls,
        picture: Picture,
        networks: Networks,
        names: Sequence[str],
        threshold: float,
        level: str | None,
        with_objects: bool,
    ) -> _Panels:
        objects = picture.objects if with_objects else None
        targets = None
        if with_objects and networks.methods:
            targets = picture.targets(networks.device, len(names))
        seen = networks.look(picture.inputs, with_objects=with_objects)
        return cls(picture, networks, names, threshold, level, seen, objects, targets)

    def all(self) -> Iterator[Panel]:
        yield from self.labels()
        yield from self.detections()
        yield from self.attention()
        yield from self.key_regions()
        yield from self.uncertainty()
        yield from self.pgd()
        yield from self.pfi()
        yield from self.rank_mimic()

    def labels(self) -> Iterator[Panel]:
        labels = self.picture.labels
        if labels is not None:
            yield Panel(
                "Pseudo labels",
                "hatched: ignored",
                lambda ax: draw.draw_labels(ax, self.picture.pixels, labels, self.names),
            )

    def detections(self) -> Iterator[Panel]:
        for role in self.networks.detectors:
            found = self.networks.detect(role, self.picture.inputs)
            if found is None:
                continue
            found = suppress_across_classes(found.above(self.threshold))
            yield Panel(role.capitalize(), "detections", self._detections_of(role, found))

    def _detections_of(self, role: str, found: Detections) -> Draw:
        truth, names = self.picture.truth, self.names
        count = self.networks.reader(role).num_classes
        if count != len(names):  # a teacher of other classes, whose boxes cannot be compared
            truth, names = None, [str(i) for i in range(count)]
        compared = truth or GroundTruth(found.boxes, found.classes)
        return lambda ax: draw.draw_detections(ax, self.picture.pixels, found, compared, names)

    def attention(self) -> Iterator[Panel]:
        fgd = self.networks.find(FGD)
        tau = 0.5 if fgd is None else fgd.tau
        # The teacher first: this is what the student learns from.
        for role in sorted(self.seen, key=lambda role: role != "teacher"):
            heat = self._level_map(role).attention(tau)
            yield Panel(f"Attention: {role}", "where its map is strong", self._heat(heat))

    def _level_map(self, role: str) -> LevelMap:
        size = self.picture.resized.shape[:2]
        return LevelMap.of(self.seen[role], self.networks.reader(role), size, self.level)

    def _heat(self, heat: np.ndarray, **style: Any) -> Draw:
        return lambda ax: draw.draw_heat(ax, self.picture.resized, heat, **style)

    def key_regions(self) -> Iterator[Panel]:
        if self.objects is None or (self.networks.methods and not self.networks.find(FGD)):
            return
        for role in list(self.seen)[-1:]:  # the teacher, or else the last student
            regions = self._level_map(role).foreground(self.objects.boxes)
            # The root makes large boxes visible next to small ones.
            drawing = self._heat(np.sqrt(regions), cmap="viridis", opacity=0.6)
            yield Panel("Key regions", "brighter cells weigh more", drawing)

    def uncertainty(self) -> Iterator[Panel]:
        if self.networks.dropout is None or self.networks.teacher is None:
            return
        maps = self._level_map("teacher").uncertainty(self.networks.dropout)
        for title, values in zip(("UET: mean", "UET: uncertainty"), maps, strict=True):
            yield Panel(title, "of the teacher's features", self._heat(values))

    def pgd(self) -> Iterator[Panel]:
        method, targets, objects = self.networks.find(PGD), self.targets, self.objects
        if method is None or targets is None or objects is None:
            return
        teacher = self.seen["teacher"]
        foregrounds, _ = method.masks(teacher, targets)
        fits = method.gaussians(teacher, targets)
        gaussians = [_found_gaussians(*fit) for fit in fits] or [[] for _ in foregrounds]
        for name, masks, ellipses in zip(method.maps, foregrounds, gaussians, strict=True):
            anchors = {k: teacher.logits[k].shape[1] // method.num_logits for k in masks}
            points, weights = _weighted_points(masks, teacher.centers, anchors)
            given = (objects.boxes, points, weights, ellipses)
            word = {"cls_tower.1": "classification", "box_tower.1": "boxes"}.get(name, "neck")
            yield Panel(f"PGD: {word}", "key regions, their Gaussians", self._gaussians(*given))

    def _gaussians(self, *given: Any) -> Draw:
        return lambda ax: draw.draw_gaussians(ax, self.picture.resized, *given)

    def pfi(self) -> Iterator[Panel]:
        method = self.networks.find(PFI)
        if method is None or not self.networks.students:
            return
        size, teacher = self.picture.resized.shape[:2], self.seen["teacher"]
        maps = {
            role: {
                pair.student: upsample(
                    method.difference(
                        self.seen[role].logits[pair.student], teacher.logits[pair.teacher]
                    )[0],
                    pair.student_shape.stride,
                    size,
                    smooth=False,
                )
                for pair in method.pairs
            }
            for role in self.networks.students
        }
        # One scale for all students, so that they can be compared.
        highest = {
            pair.student: max(float(heats[pair.student].max()) for heats in maps.values())
            for pair in method.pairs
        }
        for role, heats in maps.items():
            yield Panel(f"PFI: {role}", "differs from teacher", self._levels(heats, highest))

    def _levels(self, heats: Mapping[str, np.ndarray], highest: Mapping[str, float]) -> Draw:
        return lambda ax: draw.draw_levels(ax, self.picture.resized, heats, highest)

    def rank_mimic(self) -> Iterator[Panel]:
        method, targets, objects = self.networks.find(RankMimic), self.targets, self.objects
        if method is None or targets is None or objects is None or not self.networks.students:
            return
        teacher, students = self.seen["teacher"], list(self.networks.students)
        # The last student is the one that is distilled. All share its candidates.
        assigned = method.candidates(self.seen[students[-1]], teacher, targets)
        scores = {
            role: method.ranked_scores(self.seen[role], teacher, targets, assigned)
            for role in students
        }
        term = next(iter(scores[students[0]]))
        title, subtitle = "RM: candidates", "dark: the teacher's best"
        counts = torch.bincount(assigned[0][assigned[0] >= 0], minlength=1)
        if counts.max() < 2:
            message = "no object has two candidates"
            for heading in ((title, subtitle), ("RM: ranks", f"by {term}")):
                yield Panel(*heading, lambda ax: draw.draw_message(ax, message))
            return
        chosen = int(counts.argmax())
        candidates = (assigned[0] == chosen).cpu()
        points = teacher.centers.cpu()[candidates].numpy()
        ranks = {role: _ranks(of[term][0][0].cpu()[candidates]) for role, of in scores.items()}
        best = _ranks(scores[students[0]][term][1][0].cpu()[candidates])
        # The teacher is in the middle of two students, so that lines connect it with both.
        order = {students[0]: ranks[students[0]], "teacher": best, **ranks}
        box = objects.boxes[chosen]
        yield Panel(
            title,
            subtitle,
            lambda ax: draw.draw_candidates(ax, self.picture.resized, box, points, best),
        )
        yield Panel("RM: ranks", f"by {term}", lambda ax: draw.draw_ranks(ax, order, "teacher"))


def _ranks(scores: Tensor) -> np.ndarray:
    """(M,) whole numbers from 1, the rank of each score; the highest has rank 1."""
    return scores.argsort(descending=True, stable=True).argsort().numpy() + 1


def _weighted_points(
    masks: Mapping[str, Tensor], centers: Tensor, anchors: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Centers (M, 2) in pixels and weights (M,) of the cells that weigh more than 0.

    Args:
        masks: level name -> (1, H, W).
        centers: (R, 2), of the anchors of all levels.
        anchors: level name -> number of anchors in a cell.
    """
    points, weights, start = [], [], 0
    for level, mask in masks.items():
        cells = mask[0].flatten().cpu()
        count = len(cells) * anchors[level]
        # The anchors of a cell share a center.
        middles = centers[start : start + count].cpu()[:: anchors[level]]
        points.append(middles[cells > 0].numpy())
        weights.append(cells[cells > 0].numpy())
        start += count
    return np.concatenate(points), np.concatenate(weights)


def _found_gaussians(mean: Tensor, covariance: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """The Gaussians of a batch of one image that are not NaN."""
    means, covariances = mean[0].cpu().numpy(), covariance[0].cpu().numpy()
    pairs = zip(means, covariances, strict=True)
    return [(m, c) for m, c in pairs if np.isfinite(m).all()]
