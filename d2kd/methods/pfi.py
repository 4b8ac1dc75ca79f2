"""Prediction-guided Feature Imitation (PFI), AAAI 2022, arXiv 2112.04840."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..knowledge import Knowledge
from ..readers import Reader
from ..targets import Targets
from ..values import check_choice, check_flag
from .base import FeatureMethod, LevelPair, pair_levels

__all__ = ["PFI", "reduce"]

_REDUCTIONS = ("norm", "squared", "mean", "relative")


class PFI(FeatureMethod):
    """Features are imitated most where the predictions differ most.

    At each cell of a level, P is the squared difference of the class predictions, averaged over
    classes and anchors. F is the squared difference of the pyramid maps, averaged over channels.
    The loss of a level reduces the product P*F to a number, see `reduce`. Levels are averaged.

    There is no official code. Several sources agree on P, F and the average over levels, but not on
    the reduction. The defaults are from the only public implementation whose scores, reduction and
    weight are known together. The sizes of the losses differ by factors of thousands, see
    docs/methods/pfi.md: a weight holds for one choice of `scores` and `reduction` only.

    Args:
        reduction: see `reduce`.
        scores: compare the predictions as "logit"s or as "sigmoid" probabilities.
        detach_weight: stop the gradient through P. By default it is not stopped, as in all public
            implementations, so that the loss pulls the predictions together too. "relative" always
            stops it, because otherwise the student could lower the weighted mean by disagreeing
            with the teacher where the features agree.
        levels: see `pair_levels`. Default: all levels of the student's head whose stride the
            teacher's head has too.
        weight, shared: see `FeatureMethod`.

    Raises:
        ValueError: an argument has an impossible value.
    """

    needs = frozenset({"features", "logits"})

    def __init__(
        self,
        *,
        reduction: str = "norm",
        scores: str = "logit",
        detach_weight: bool = False,
        levels: Sequence[str] | Mapping[str, str] | None = None,
        weight: float = 1.5,
        **shared,
    ):
        super().__init__(levels=levels, weight=weight, **shared)
        self.reduction = check_choice("PFI.reduction", reduction, _REDUCTIONS)
        self.scores = check_choice("PFI.scores", scores, ("sigmoid", "logit"))
        detached = check_flag("PFI.detach_weight", detach_weight)
        self.detach_weight = detached or reduction == "relative"

    def pair(self, student: Reader, teacher: Reader) -> list[LevelPair]:
        return pair_levels(
            self.levels,
            student,
            teacher,
            "PFI",
            student_levels=student.head_in_features,
            teacher_levels=teacher.head_in_features,
        )

    def setup(self, student: Reader, teacher: Reader) -> None:
        super().setup(student, teacher)
        for pair in self.pairs:
            names = ("stride", "classes in the head's logits", "anchors in a cell")
            grids = _grid(student, pair.student), _grid(teacher, pair.teacher)
            for what, s, t in zip(names, *grids, strict=True):
                if s != t:
                    raise ValueError(
                        f"PFI: expected student ({student.name}, {pair.student}) and teacher "
                        f"({teacher.name}, {pair.teacher}) with the same {what}, found {s} and "
                        f"{t}. Give both the same, or use another feature method such as FGD."
                    )

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        losses = []
        for pair in self.pairs:
            s, t = self.align(pair, student, teacher)
            error = _mean_square(s, self.uncertainty(t).detach())
            predictions = student.logits[pair.student], teacher.logits[pair.teacher]
            losses.append(reduce(self.difference(*predictions), error, self.reduction))
        return {"imitation": sum(losses[1:], start=losses[0]) / len(losses)}

    def difference(self, student: Tensor, teacher: Tensor) -> Tensor:
        """P, (N, H, W), of the logits (N, A*K, H, W) of one level."""
        if self.detach_weight:
            student = student.detach()
        if self.scores == "sigmoid":
            student, teacher = student.sigmoid(), teacher.sigmoid()
        return _mean_square(student, teacher)


def reduce(weight: Tensor, error: Tensor, reduction: str) -> Tensor:
    """The loss of one level, averaged over images.

    Args:
        weight, error: P and F, (N, H, W).
        reduction: "norm": the 2-norm of the products P*F, divided by the number of cells.
            "squared": the mean of their squares. "mean": their mean. "relative" (ours): the mean of
            F weighted by P. A common factor of P does not change it.
    """
    product = weight * error
    if reduction == "norm":
        return (torch.linalg.vector_norm(product, dim=(1, 2)) / product[0].numel()).mean()
    if reduction == "squared":
        return product.square().mean()
    if reduction == "mean":
        return product.mean()
    # The floor avoids 0 / 0 where the predictions are equal. It is far below usual differences.
    return (product.sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-12)).mean()


def _mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of maps (N, C, H, W), averaged over channels: (N, H, W)."""
    return F.mse_loss(student, teacher, reduction="none").mean(1)


def _grid(reader: Reader, level: str) -> tuple[int, int, int]:
    """Stride, classes and anchors per cell of the logits of a level."""
    if level not in reader.head_in_features:
        raise ValueError(
            f"PFI.levels: expected levels that the head of {reader.name} sees, "
            f"{', '.join(reader.head_in_features)}, found {level!r}"
        )
    generator = getattr(reader, "anchor_generator", None)
    # A head without anchors makes one prediction per cell.
    anchors = generator.num_anchors[reader.head_in_features.index(level)] if generator else 1
    return reader.shapes[level].stride, reader.num_logits, anchors
