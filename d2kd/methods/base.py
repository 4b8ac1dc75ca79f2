"""The base classes of all distillation methods, and how levels are paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..knowledge import Knowledge
from ..loss_weights import GradientBalance
from ..readers import Reader
from ..signature import merge_signature
from ..targets import Targets
from ..values import check_coefficients, check_number

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
        weight: multiplies all losses of the method, in addition to their published coefficients.
        balance: replaces `weight`. It keeps the norm of the method's gradient at the neck at this
            fraction of the task's gradient; see `d2kd.loss_weights.GradientBalance`. With several
            methods, each is balanced on its own.
        schedule: multiplies `weight` or `balance`. It maps the finished share of training, in
            [0, 1), to a factor >= 0: a scheduler of fvcore.common.param_scheduler or any other
            function. While the factor is 0, the method does not run. The teacher does not run
            either, unless another method needs it.

    Raises:
        ValueError: a weight or balance out of its range.
        TypeError: a schedule that cannot be called.
    """

    needs: frozenset[str] = frozenset()
    """What the student has to show for the method; see `d2kd.readers.Reader`."""

    @property
    def teacher_needs(self) -> frozenset[str]:
        """What the teacher has to show; the same as `needs` unless a method overrides it."""
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
        check_coefficients(name, weight=weight)
        if balance is not None:
            check_number(f"{name}.balance", balance, above=0, other="None")
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

        The distiller calls this once, when it is built.

        Raises:
            ValueError: the method and the detectors do not fit; the message says where.
        """
        for role, reader, needs in (
            ("student", student, self.needs),
            ("teacher", teacher, self.teacher_needs),
        ):
            lacking = sorted(needs - reader.provides)
            if lacking:
                raise ValueError(
                    f"{type(self).__name__} needs {', '.join(lacking)} of the {role}, expected a "
                    f"dense detector (RetinaNet, FCOS, ...), found {reader.name}, which provides "
                    f"{', '.join(sorted(reader.provides))} only. Use a feature method such as FGD."
                )

    def forward(
        self, student: Knowledge, teacher: Knowledge, targets: Targets
    ) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            student: carries gradients.
            teacher: carries none.
            targets: ground truth.

        Returns:
            term name -> scalar loss with its published coefficient, without `weight`.
        """
        raise NotImplementedError


class Methods(nn.ModuleDict):
    """Methods by name. Each is a keyword, so that a config can say `methods.fgd.weight=2`."""

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
    caller: str,
    *,
    student_levels: Iterable[str] | None = None,
    teacher_levels: Iterable[str] | None = None,
    require_all: bool = False,
    fix: str = "",
) -> list[LevelPair]:
    """Decide which level of the student learns from which level of the teacher.

    Args:
        levels: names that both detectors use; or a table, student's name -> teacher's name; or None
            to pair the levels by stride.
        caller: name of the method, for messages.
        student_levels, teacher_levels: the levels to pair by stride where `levels` is None, such as
            `head_in_features`. Default: all levels of the pyramid.
        require_all: both detectors must have the same strides in the same order, so that every
            level is in a pair. Otherwise levels without a partner are left out.
        fix: what to do about an error in pairing by stride, for the message.

    Returns:
        the pairs in the order of `levels` or of `student_levels`.

    Raises:
        ValueError: a detector has no level of a given name, no stride is shared, or `require_all`
            is not met.
    """
    if levels is None:
        by_stride = _levels_by_stride(student, student_levels)
        teacher_by_stride = _levels_by_stride(teacher, teacher_levels)
        names = {
            name: teacher_by_stride[stride]
            for stride, name in by_stride.items()
            if stride in teacher_by_stride
        }
        if not names or (require_all and list(by_stride) != list(teacher_by_stride)):
            problem = "the same strides" if require_all else "at least one common stride"
            fix = fix or f"Give {caller}.levels as a table of student to teacher levels."
            raise ValueError(
                f"{caller}: expected levels of student ({student.name}) and teacher "
                f"({teacher.name}) with {problem}, found {list(by_stride)} and "
                f"{list(teacher_by_stride)}. {fix}"
            )
    else:
        names = dict(levels) if isinstance(levels, Mapping) else {name: name for name in levels}
        if not names:
            raise ValueError(f"{caller}.levels: expected at least one level name, found none")
    for name, role, reader in (
        *((s, "student", student) for s in names),
        *((t, "teacher", teacher) for t in names.values()),
    ):
        if name not in reader.shapes:
            raise ValueError(
                f"{caller}.levels: expected levels of the {role} ({reader.name}), which has "
                f"{_strides(reader)}, found {name!r}."
            )
    return [LevelPair(s, t, student.shapes[s], teacher.shapes[t]) for s, t in names.items()]


def _levels_by_stride(reader: Reader, levels: Iterable[str] | None) -> dict[int, str]:
    shapes = reader.shapes
    return {shapes[name].stride: name for name in (shapes if levels is None else levels)}


def _strides(reader: Reader) -> str:
    return ", ".join(f"{name} (stride {shape.stride})" for name, shape in reader.shapes.items())


def make_adapter(student: int, teacher: int) -> nn.Module:
    """Bring maps of the student's channels to the teacher's channels.

    A 1x1 convolution where the numbers of channels differ; otherwise the identity.
    """
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, kernel_size=1)


def resize_to(student: Tensor, teacher: Tensor) -> Tensor:
    """Resize the student's map (N, C, H, W) to the grid of the teacher's map."""
    if student.shape[-2:] == teacher.shape[-2:]:
        return student
    return F.interpolate(student, size=teacher.shape[-2:], mode="bilinear", align_corners=False)


class FeatureMethod(Method):
    """A method on pyramid maps, in the three stages of UET (arXiv 2406.06999).

    1. Uncertainty: the module `uncertainty` changes the teacher's map; by default nothing does.
    2. Extraction: which parts of the maps matter.
    3. Transfer: how the two maps are compared.

    A subclass writes extraction and transfer in `compare`, which is called once for each level.

    Args:
        levels: see `pair_levels`.
        uncertainty: module from teacher map to teacher map, such as `MCDropout`. Its output is the
            target and is detached, so that parameters of this module would not train.
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
        self.pairs = self.pair(student, teacher)
        for pair in self.pairs:
            self.adapters[pair.student] = make_adapter(
                pair.student_shape.channels, pair.teacher_shape.channels
            )
            self.setup_level(pair)

    def pair(self, student: Reader, teacher: Reader) -> list[LevelPair]:
        """Pair the levels; see `pair_levels`."""
        return pair_levels(self.levels, student, teacher, type(self).__name__)

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
        """Bring both maps of a pair to the teacher's channels and grid.

        Returns:
            the student's and the teacher's map, both (N, C_teacher, H, W).
        """
        s = self.adapters[pair.student](student.features[pair.student])
        t = teacher.features[pair.teacher]
        return resize_to(s, t), t

    def compare(
        self, pair: LevelPair, student: Tensor, teacher: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """Extraction and transfer at one level.

        Args:
            pair: names and shapes of the two levels.
            student, teacher: (N, C, H, W), fp32; the teacher's map carries no gradient.
            targets: ground truth.

        Returns:
            term name -> scalar loss. Each term is summed over levels.
        """
        raise NotImplementedError
