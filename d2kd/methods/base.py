"""What a distillation method is, and the part that all feature methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..knowledge import Knowledge
from ..loss_weights import GradientBalance
from ..readers import Reader
from ..signature import merge_signature
from ..targets import Targets
from .compiled import Compiled

__all__ = [
    "FeatureMethod",
    "LevelPair",
    "Method",
    "Methods",
    "make_adapter",
    "pair_levels",
    "resize_to",
]


class Method(nn.Module):
    """Turns what student and teacher show about a batch into losses.

    It is a module so that adapters and context blocks train, and are saved, with the student.

    Args:
        weight: multiplies all of the method's losses, on top of their published coefficients.
        balance: in place of `weight`, whatever keeps the norm of the method's gradient at the
            neck at this fraction of the task's; see `d2kd.loss_weights.GradientBalance`. With
            several methods, each is held by itself.
        schedule: multiplies `weight` or `balance`, by the share of training that is done: a
            scheduler of fvcore.common.param_scheduler, or any other function from [0, 1) to a
            factor >= 0. While it says 0, the method does not run, and a teacher that no other
            method asks does not either.

    Raises:
        ValueError: a weight or balance out of its range.
        TypeError: a schedule that cannot be called.
    """

    needs: frozenset[str] = frozenset()
    """What the student has to show for the method; see `d2kd.readers.Reader`."""

    compilable: ClassVar[Mapping[str, Callable]] = {}
    """Name of a function that the method calls by `self` -> a form of it for torch.compile."""

    @property
    def teacher_needs(self) -> frozenset[str]:
        """What the teacher has to show: the same, where a method does not say otherwise."""
        return self.needs

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        merge_signature(cls)

    def __init__(
        self,
        *,
        weight: float = 1.0,
        balance: float | None = None,
        schedule: Callable[[float], float] | None = None,
    ):
        super().__init__()
        name = type(self).__name__
        if not _is_number(weight) or not 0 <= weight < math.inf:
            raise ValueError(f"{name}.weight: expected a number >= 0, found {weight!r}")
        if balance is not None and (not _is_number(balance) or not 0 < balance < math.inf):
            raise ValueError(f"{name}.balance: expected a number > 0 or None, found {balance!r}")
        if schedule is not None and not callable(schedule):
            raise TypeError(
                f"{name}.schedule: expected a scheduler of fvcore.common.param_scheduler, found "
                f"{schedule!r}"
            )
        self.weight = float(weight)
        self.balance = None if balance is None else GradientBalance(balance)
        self.schedule = schedule

    def setup(self, student: Reader, teacher: Reader) -> None:
        """Check that the method fits both detectors and make its parameters.

        Called once, when the distiller is built.

        Raises:
            ValueError: the method and the detectors do not fit; the message says where.
        """
        for role, reader, needs in (
            ("student", student, self.needs),
            ("teacher", teacher, self.teacher_needs),
        ):
            lacking = sorted(needs - reader.offers)
            if lacking:
                raise ValueError(
                    f"{type(self).__name__} needs {', '.join(lacking)} of the {role}, expected a "
                    f"dense detector (RetinaNet, FCOS, ...), found {reader.name}, which offers "
                    f"{', '.join(sorted(reader.offers))} only. Use a feature method such as FGD."
                )

    def compile_losses(self) -> None:
        """Let torch.compile take over what is `compilable`; see `Compiled`."""
        for name, plain in self.compilable.items():
            setattr(self, name, Compiled(plain, getattr(self, name)))

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        """
        Returns:
            term name -> scalar loss with its published coefficient, without `weight`.
        """
        raise NotImplementedError


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Methods(nn.ModuleDict):
    """Named methods. A keyword each, so that a config can say `methods.fgd.weight=2`."""

    def __init__(self, **methods: Method):
        super().__init__(methods)


class LevelPair(NamedTuple):
    """One level of the student and the level of the teacher that it learns from."""

    student: str
    teacher: str
    student_shape: ShapeSpec
    teacher_shape: ShapeSpec


def pair_levels(
    levels: Sequence[str] | Mapping[str, str] | None,
    student: Reader,
    teacher: Reader,
    who: str,
) -> list[LevelPair]:
    """Decide which level learns from which.

    Args:
        levels: names that both detectors use; or student name -> teacher name; or None for all
            levels of the student whose stride the teacher has too.
        who: names the method in messages.

    Raises:
        ValueError: a detector has no level of that name, or no stride is shared.
    """
    if levels is None:
        by_stride = {shape.stride: name for name, shape in teacher.shapes.items()}
        names = {
            name: by_stride[shape.stride]
            for name, shape in student.shapes.items()
            if shape.stride in by_stride
        }
        if not names:
            raise ValueError(
                f"{who}: student and teacher share no stride, found {_strides(student)} and "
                f"{_strides(teacher)}. Give {who}.levels as a table of student to teacher levels."
            )
    else:
        names = dict(levels) if isinstance(levels, Mapping) else {name: name for name in levels}
        if not names:
            raise ValueError(f"{who}.levels: expected at least one level name, found none")
    for name, role, reader in (
        *((s, "student", student) for s in names),
        *((t, "teacher", teacher) for t in names.values()),
    ):
        if name not in reader.shapes:
            raise ValueError(
                f"{who}.levels: expected levels of the {role} ({reader.name}), which has "
                f"{_strides(reader)}, found {name!r}."
            )
    return [LevelPair(s, t, student.shapes[s], teacher.shapes[t]) for s, t in names.items()]


def _strides(reader: Reader) -> str:
    return ", ".join(f"{name} (stride {shape.stride})" for name, shape in reader.shapes.items())


def make_adapter(student: int, teacher: int) -> nn.Module:
    """From the student's channels to the teacher's: a 1x1 convolution only where they differ."""
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, kernel_size=1)


def resize_to(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map (N, C, H, W) on the grid of the teacher's."""
    if student.shape[-2:] == teacher.shape[-2:]:
        return student
    return F.interpolate(student, size=teacher.shape[-2:], mode="bilinear", align_corners=False)


class FeatureMethod(Method):
    """A method on pyramid maps, in the three stages of UET (arXiv 2406.06999).

    Uncertainty: `uncertainty` changes the teacher's map, or nothing does. Extraction and transfer:
    the subclass's `compare`, called once a level.

    Args:
        levels: see `pair_levels`.
        uncertainty: module from teacher map to teacher map, such as `MCDropout`. What it gives is
            the target, a constant: it does not train.
        shared: see `Method`.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        *,
        levels: Sequence[str] | Mapping[str, str] | None = None,
        uncertainty: nn.Module | None = None,
        **shared,
    ):
        super().__init__(**shared)
        self.levels = levels
        self.uncertainty = uncertainty or nn.Identity()
        self.adapters = nn.ModuleDict()
        self.pairs: list[LevelPair] = []

    def setup(self, student: Reader, teacher: Reader) -> None:
        super().setup(student, teacher)
        self.pairs = pair_levels(self.levels, student, teacher, type(self).__name__)
        for pair in self.pairs:
            self.adapters[pair.student] = make_adapter(
                pair.student_shape.channels, pair.teacher_shape.channels
            )
            self.setup_level(pair)

    def setup_level(self, pair: LevelPair) -> None:
        """Make the parameters that the method keeps for one pair of levels, if any."""

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for pair in self.pairs:
            s, t = self.align(pair, student, teacher)
            for term, value in self.compare(pair, s, self.uncertainty(t).detach(), targets).items():
                total[term] = total[term] + value if term in total else value
        return total

    def align(
        self, pair: LevelPair, student: Knowledge, teacher: Knowledge
    ) -> tuple[Tensor, Tensor]:
        """Bring both maps of a pair to the teacher's width and grid, over the student's frame.

        Returns:
            student's and teacher's map, both (N, C_teacher, H, W).
        """
        s = self.adapters[pair.student](student.features[pair.student])
        t = teacher.features[pair.teacher]
        return resize_to(s, t), t

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """Extraction and transfer at one level.

        Args:
            student, teacher: (N, C, H, W), fp32; the teacher's carries no gradient.

        Returns:
            term name -> scalar; terms are summed over levels.
        """
        raise NotImplementedError
