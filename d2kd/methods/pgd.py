"""Prediction-Guided Distillation (PGD, ECCV 2022, arXiv 2203.05469)."""

from __future__ import annotations

from typing import Any, cast

import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn

from ..knowledge import Knowledge
from ..readers import Reader
from ..targets import Targets
from ..values import check_choice, check_coefficients, check_number
from .base import LevelPair, Method, make_adapter, pair_levels, resize_to
from .kernels.attention import softmax_attention
from .kernels.key_regions import (
    CANDIDATES,
    WEIGHTINGS,
    fitted_gaussians,
    key_regions,
    to_grids,
)
from .kernels.pgd import compare_cells

__all__ = ["PGD"]

# The maps that `PGD(on=...)` distills, by their names in Knowledge.
_MAPS: dict[str, tuple[str, ...]] = {
    "towers": ("cls_tower.1", "box_tower.1"),
    "neck": ("features",),
}


class PGD(Method):
    """Distills the locations where the teacher predicts a box best: its key predictive regions.

    The distilled maps are the outputs of the first block of the head's two towers. Classification
    and regression tower have their own masks and losses.

    The defaults are the released weights for FCOS. The released code differs from the paper in some
    places. This is the form of the paper:

    - Each image has its own masks. The released classification term applies the masks of all images
      of a GPU to each image. With 4 images, as in the release, its background counts about 4 times
      as much, and the released weights were chosen with that.
    - A box chooses among the locations inside it. `candidates="image"` chooses as released.
    - x and y keep their order. The release swaps them for FCOS and AutoAssign.

    Ours is a ridge on the Gaussian's covariance, in place of the released random jitter of the same
    variance.

    Args:
        on: "towers", as published. Or "neck": the classification term alone, on the maps that the
            head gets. It is for detectors without two towers and for heads that differ between
            student and teacher. The authors advise the classification term for coupled heads; to
            use it on the neck is ours. For Faster R-CNN, the objectness of its proposal network
            stands for the score of every class; that is ours, too.
        candidates, weighting: see `key_regions`. "gaussian" is PGD, the others are for ablations.
            Each anchor of a cell is a candidate, and the cell gets the largest weight of its
            anchors. The published heads have one anchor per cell.
        top_k: number of locations that each box chooses, over all levels together.
        xi_cls, xi_reg: exponent of the IoU in the quality of a location, for the classification and
            the regression tower, in [0, 1].
        tau: temperature of both attentions, > 0.
        alpha, beta: weights of the squared difference on the foreground and the background of the
            classification tower. Default: beta = alpha / 2.
        gamma: weight of the squared difference on the foreground of the regression tower. Default:
            1.6 alpha.
        delta: weight of the difference between the attentions.
        level_step: alpha and beta of level i of the head are multiplied by 1 + level_step * i. The
            finest level is 0.
        uncertainty: see `FeatureMethod`.
        shared: see `Method`.

    Raises:
        ValueError: a value out of its range, or an unknown word.
    """

    def __init__(
        self,
        *,
        on: str = "towers",
        candidates: str = "box",
        weighting: str = "gaussian",
        top_k: int = 30,
        xi_cls: float = 0.8,
        xi_reg: float = 0.6,
        tau: float = 0.8,
        alpha: float = 0.04,
        beta: float | None = None,
        gamma: float | None = None,
        delta: float = 8e-4,
        level_step: float = 0.25,
        uncertainty: nn.Module | None = None,
        **shared,
    ):
        super().__init__(**shared)
        check_choice("PGD.candidates", candidates, CANDIDATES)
        check_choice("PGD.weighting", weighting, WEIGHTINGS)
        check_number("PGD.top_k", top_k, least=1, whole=True)
        check_number("PGD.xi_cls", xi_cls, most=1)
        check_number("PGD.xi_reg", xi_reg, most=1)
        check_number("PGD.tau", tau, above=0)
        # The defaults of beta and gamma follow from alpha.
        check_coefficients("PGD", alpha=alpha, delta=delta, level_step=level_step)
        self.on = check_choice("PGD.on", on, _MAPS)
        self.beta = alpha / 2 if beta is None else beta
        self.gamma = 1.6 * alpha if gamma is None else gamma
        check_coefficients("PGD", beta=self.beta, gamma=self.gamma)
        self.maps = _MAPS[on]
        self.needs = frozenset(self.maps)
        xis = (xi_cls, xi_reg)[: len(self.maps)]
        self.choice: dict[str, Any] = dict(
            xis=xis, k=top_k, candidates=candidates, weighting=weighting
        )
        self.tau, self.alpha, self.delta, self.level_step = tau, alpha, delta, level_step
        self.uncertainty = uncertainty or nn.Identity()
        self.adapters = nn.ModuleDict()
        self.pairs: list[LevelPair] = []

    @property
    def teacher_needs(self) -> frozenset[str]:
        return self.needs | {"logits", "boxes"}

    def setup(self, student: Reader, teacher: Reader) -> None:
        if self.on == "towers" and not self.needs <= student.provides & teacher.provides:
            raise ValueError(
                f"PGD: expected student and teacher with two towers each, found {student.name} "
                f'and {teacher.name}. Use PGD(on="neck").'
            )
        super().setup(student, teacher)
        objectness = teacher.num_logits == 1 != teacher.num_classes
        if not objectness and teacher.num_logits != student.num_classes:
            raise ValueError(
                f"PGD: expected a teacher ({teacher.name}) that scores the student's "
                f"{student.num_classes} classes, found {teacher.num_logits}. Give both the same "
                f"num_classes."
            )
        neck = self.on == "neck"
        self.pairs = pair_levels(
            None,
            student,
            teacher,
            "PGD",
            student_levels=student.shapes if neck else student.head_in_features,
            teacher_levels=teacher.head_in_features,
            require_all=not neck,
            fix='Give both the same, or use PGD(on="neck"), which takes the levels that both have.',
        )
        # Plain values, so that a copy of this module does not hold the teacher.
        self.choice["padding"] = teacher.padding
        self.num_logits, self.head_in_features = teacher.num_logits, teacher.head_in_features
        for name in self.maps:
            self.adapters[_key(name)] = nn.ModuleDict(
                {
                    pair.student: make_adapter(
                        _channels(student, name, pair.student),
                        _channels(teacher, name, pair.teacher),
                    )
                    for pair in self.pairs
                }
            )

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        """
        Returns:
            "foreground", "background" and "attention" of the classification tower or the neck, and
            "regression" and "regression_attention" of the regression tower. All are summed over
            levels.
        """
        foregrounds, background = self.masks(teacher, targets)
        total: dict[str, Tensor] = {}
        for i, pair in enumerate(self.pairs):
            for name, foreground in zip(self.maps, foregrounds, strict=True):
                adapter = cast(nn.ModuleDict, self.adapters[_key(name)])[pair.student]
                s = adapter(student.maps(name)[pair.student])
                t = self.uncertainty(teacher.maps(name)[pair.teacher]).detach()
                s = resize_to(s, t)
                fg, bg = foreground[pair.teacher], background[pair.teacher]
                if _key(name) == "box_tower":
                    most = self.most_foreground(fg, targets)
                    terms = self.regression(s, t, fg, most)
                else:
                    terms = self.classification(s, t, fg, bg, 1 + self.level_step * i)
                for term, value in terms.items():
                    total[term] = total.get(term, 0) + value
        return total

    @torch.no_grad()
    def masks(
        self, teacher: Knowledge, targets: Targets
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """The masks on the grids of the teacher's head.

        Returns:
            for each of `self.maps` a foreground, level name -> (N, H, W) in [0, 1]; and the
            background, level name -> (N, H, W) of 0 and 1.
        """
        logits = {level: teacher.logits[level] for level in self.head_in_features}
        foregrounds, background = key_regions(
            self._flat_logits(teacher), teacher.boxes, teacher.centers, targets, **self.choice
        )
        shapes = {
            level: (*x.shape[-2:], x.shape[1] // self.num_logits) for level, x in logits.items()
        }
        # Anchors of a cell have the same center, except for rounding. amin: a cell that is
        # foreground by one of its anchors is not background by another.
        grids = [to_grids(x, shapes, torch.amax) for x in foregrounds]
        return grids, to_grids(background, shapes, torch.amin)

    def gaussians(self, teacher: Knowledge, targets: Targets) -> list[tuple[Tensor, Tensor]]:
        """The Gaussians behind the foregrounds of `masks`, for pictures.

        Returns:
            for each of `self.maps`, means (N, G, 2) in pixels and covariances (N, G, 2, 2) in px^2,
            NaN where a box has none. Empty if `weighting` is not "gaussian".
        """
        if self.choice["weighting"] != "gaussian":
            return []
        choice = {name: value for name, value in self.choice.items() if name != "weighting"}
        return fitted_gaussians(
            self._flat_logits(teacher), teacher.boxes, teacher.centers, targets, **choice
        )

    def _flat_logits(self, teacher: Knowledge) -> Tensor:
        """(N, R, K) logits of all levels of the teacher's head."""
        levels = [teacher.logits[level] for level in self.head_in_features]
        return torch.cat([permute_to_N_HWA_K(x, self.num_logits) for x in levels], 1)

    def classification(
        self, student: Tensor, teacher: Tensor, fg: Tensor, bg: Tensor, level_weight: float
    ) -> dict[str, Tensor]:
        """The terms of one level of the classification tower, averaged over images.

        "foreground" and "background" are the sum over channels of S(t) A(t) (s - t)^2, averaged
        over the foreground or background cells of an image. S and A are the spatial and the channel
        attention.

        Args:
            student, teacher: (N, C, H, W).
            fg, bg: foreground and background, (N, H, W).
            level_weight: multiplies these two terms, but not the attention term.
        """
        cells = compare_cells(student.flatten(2), teacher.flatten(2), self.tau)
        n, r = cells.error.shape
        spatial_s, spatial_t = (
            softmax_attention(x, self.tau) for x in (cells.student, cells.teacher)
        )
        # The weights of the error are the teacher's attention. The student's attention is only
        # compared with it.
        error = spatial_t * cells.error
        fg_error, bg_error = (
            ((mask * error).sum(1) / mask.ne(0).sum(1).clamp(min=1)).mean()
            for mask in (fg.flatten(1), bg.flatten(1))
        )
        # The spatial part is not divided by H * W (released code).
        difference = cells.difference.sum() / r + (spatial_s - spatial_t).abs().sum()
        return {
            "foreground": level_weight * self.alpha * fg_error,
            "background": level_weight * self.beta * bg_error,
            "attention": self.delta * difference / n,
        }

    def most_foreground(self, fg: Tensor, targets: Targets) -> int | None:
        """An upper bound for the number of foreground cells of an image; None if all cells may be.

        On a CPU the cells are counted. On a GPU the host would have to wait for the count, so it
        takes the number of locations that the boxes can choose, which does not depend on values.
        """
        if not fg.is_cuda:
            return int(fg.ne(0).sum((1, 2)).max())
        chosen = self.choice["weighting"] in ("gaussian", "quality")
        return targets.boxes.shape[1] * self.choice["k"] if chosen else None

    def regression(
        self, student: Tensor, teacher: Tensor, fg: Tensor, most: int | None = None
    ) -> dict[str, Tensor]:
        """The terms of one level of the regression tower, averaged over the batch's foreground.

        As released, the squared difference is a mean over channels, unlike in `classification`, and
        there is no spatial attention, no background and no weight of the level.

        Args:
            student, teacher: (N, C, H, W).
            fg: (N, H, W).
            most: upper bound for the foreground cells of an image; None if unknown.
        """
        fg, student, teacher = fg.flatten(1), student.flatten(2), teacher.flatten(2)
        if most is not None and 2 * most < fg.shape[1]:  # all other cells have the weight 0
            fg, rows = fg.topk(most, 1, sorted=False)
            student, teacher = (
                x.gather(2, rows[:, None].expand(-1, x.shape[1], -1)) for x in (student, teacher)
            )
        cells = compare_cells(student, teacher, self.tau)
        error = cells.error / student.shape[1]
        count = fg.ne(0).sum().clamp(min=1)
        return {
            "regression": self.gamma * (fg * error).sum() / count,
            "regression_attention": self.delta * (fg.ne(0) * cells.difference).sum() / count,
        }


def _key(name: str) -> str:
    """Name of a map as a key of adapters: "cls_tower" of "cls_tower.1"."""
    return name.partition(".")[0]


def _channels(reader: Reader, name: str, level: str) -> int:
    return reader.shapes[level].channels if name == "features" else reader.taps[name].channels
