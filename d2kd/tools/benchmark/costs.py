"""The turns of a benchmark: what is measured of a detector or a distiller, on random images.

Shapes: N images, C channels, H x W pixels or cells.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2kd import Distiller, Knowledge, Targets
from d2kd.engine import Trainer
from d2kd.methods import MCDropout, Method
from d2kd.readers import get_reader
from d2kd.tools.benchmark.setting import ALONE, DISTILLED, random_batch, settle, student_of
from d2kd.tools.benchmark.stopwatch import Ratio, Turn

TEACHER = "teacher features"

# A name in `Method.needs` -> fields of Knowledge.
_MAPS = {
    "features": ("features",),
    "towers": ("cls_tower.1", "box_tower.1"),
    "logits": ("logits", "deltas", "quality"),
}


def scene_turns(
    model: nn.Module,
    trainers: dict[str, Trainer],
    scene: str,
    size: tuple[int, int],
    counts: Sequence[int],
    batch: int,
) -> Iterator[Turn]:
    """All turns on images of one size.

    Args:
        model: a detector or a distiller, in training mode.
        trainers: from `build_trainers`; an empty dict to measure the methods only.
        scene: name of the scene, for the tables.
        size: height and width in pixels.
        counts: numbers of boxes in each image.
        batch: number of images.
    """
    student = student_of(model)
    device = next(student.parameters()).device
    batches = {n: random_batch(size, n, batch, student) for n in counts}
    inputs = next(iter(batches.values()))
    distiller = model if isinstance(model, Distiller) and model.distillation else None
    settle(student, inputs)
    knowledge: tuple[Knowledge, Knowledge] | None = None
    if distiller is not None and distiller.teacher is not None:
        settle(distiller.teacher.to(device).model, inputs)
        amp = trainers[ALONE].amp_dtype if trainers else None
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            knowledge = record(distiller, inputs)
    padded_size = None if knowledge is None else knowledge[0].padded_size
    for n, inputs in batches.items():
        turn = functools.partial(Turn, scene, n)
        if trainers:
            yield from step_turns(turn, model, trainers, inputs, padded_size)
        if distiller is not None and knowledge is not None:
            targets = Targets.from_inputs(inputs, device, get_reader(student).num_classes)
            yield from method_turns(turn, distiller, *knowledge, targets)


def methods_of(methods: nn.ModuleDict) -> dict[str, Method]:
    """The methods by name, with their type."""
    return {name: cast(Method, method) for name, method in methods.items()}


def uet_modes(methods: nn.ModuleDict) -> dict[str, dict[str, nn.Module]]:
    """Suffix of a turn's name -> the uncertainty stage of each method that has one.

    "" has the stages of the config. " without UET" and " with UET" are there if they differ from
    the config.
    """
    here = {
        name: cast(nn.Module, method.uncertainty)
        for name, method in methods.items()
        if hasattr(method, "uncertainty")
    }
    off = [isinstance(stage, nn.Identity) for stage in here.values()]
    modes: dict[str, dict[str, nn.Module]] = {"": here}
    if not all(off):
        modes[" without UET"] = {name: nn.Identity() for name in here}
    if any(off):
        modes[" with UET"] = {
            name: MCDropout() if isinstance(stage, nn.Identity) else stage
            for name, stage in here.items()
        }
    return modes


def record(model: Distiller, batch: Sequence[dict]) -> tuple[Knowledge, Knowledge]:
    """Run the distiller once, and return the student's and the teacher's `Knowledge`.

    The maps do not belong to the distiller's graph any longer. The student's maps and boxes are
    leaves that take gradients.
    """
    given: list[tuple] = []
    first = next(iter(model.distillation.values()))
    handle = first.register_forward_pre_hook(lambda _module, args: given.append(args))
    try:
        model(batch)
    finally:
        handle.remove()
    student, teacher, _ = given[0]
    leaves = student.map_levels(lambda _level, x: x.detach().requires_grad_())
    leaves.anchors = student.anchors
    if student.boxes is not None:
        leaves.boxes = student.boxes.detach().requires_grad_()
    return leaves, teacher


def step_turns(
    turn: Callable[..., Turn],
    model: nn.Module,
    trainers: Mapping[str, Trainer],
    batch: Sequence[dict],
    padded_size: tuple[int, int] | None,
) -> Iterator[Turn]:
    """The turns of the student's step, of the teacher and of the distilled steps.

    Args:
        turn: makes a `Turn` with this scene and number of boxes.
        trainers: the student's by ALONE and, for a distiller, the distiller's by DISTILLED.
        padded_size: height and width of the student's padded batch; None without a distiller.
    """

    def step(trainer: Trainer, stages: Mapping[str, nn.Module]) -> dict:
        def run(_) -> None:
            if isinstance(model, Distiller):
                _set_stages(model, stages)
            trainer.set_loader(itertools.repeat(batch))
            trainer.run_step()

        def forget() -> None:
            trainer.optimizer.zero_grad(set_to_none=True)

        return dict(phases={"step": run}, tidy=forget)

    yield turn(ALONE, **step(trainers[ALONE], {}))
    if DISTILLED not in trainers or not isinstance(model, Distiller) or padded_size is None:
        return
    teacher, needs = model.teacher, model.teacher_needs
    assert teacher is not None  # a distiller with methods has one

    def teach(_) -> Knowledge:
        input_format = model.input_format
        return teacher(batch, input_format=input_format, padded_size=padded_size, needs=needs)

    yield turn(TEACHER, {"forward": teach})
    for suffix, stages in uet_modes(model.distillation).items():
        yield turn(DISTILLED + suffix, **step(trainers[DISTILLED], stages))


def method_turns(
    turn: Callable[..., Turn],
    model: Distiller,
    student: Knowledge,
    teacher: Knowledge,
    targets: Targets,
) -> Iterator[Turn]:
    """The turns of each method alone, with and without UET, and of the squared errors.

    Args:
        turn: makes a `Turn` with this scene and number of boxes.
        student, teacher: from `record`.
    """

    def backward(loss: Tensor) -> None:
        loss.backward()

    leaves = [x for name in sum(_MAPS.values(), ()) for x in student.maps(name).values()]
    leaves += [] if student.boxes is None else [student.boxes]
    methods, modes = methods_of(model.distillation), uet_modes(model.distillation)
    for name, method in methods.items():

        def tidy(method: Method = method) -> None:
            method.zero_grad(set_to_none=True)
            for x in leaves:
                x.grad = None

        for suffix, stages in modes.items():
            if suffix and name not in stages:
                continue

            def forward(_, method: Method = method, stages: Mapping = stages) -> Tensor:
                _set_stages(model, stages)
                return functools.reduce(torch.add, method(student, teacher, targets).values())

            yield turn(name + suffix, {"forward": forward, "backward": backward}, tidy)

    for name, method in {reference(m): m for m in methods.values()}.items():
        pairs = [(torch.rand_like(x).requires_grad_(), x) for x in _compared(method, teacher)]

        def error(_, pairs: Sequence = pairs) -> Tensor:
            return functools.reduce(torch.add, [F.mse_loss(s, t) for s, t in pairs])

        def forget(pairs: Sequence = pairs) -> None:
            for s, _ in pairs:
                s.grad = None

        yield turn(name, {"forward": error, "backward": backward}, forget)


def reference(method: Method) -> str:
    """Name of the turn with the squared error of the maps that a method compares."""
    levels = " ".join(_levels(method))
    return f"squared error of {' and '.join(_compared_needs(method))} {levels}".strip()


def _compared_needs(method: Method) -> list[str]:
    return [need for need in sorted(_MAPS) if method.needs & {need, *_MAPS[need]}]


def _levels(method: Method) -> list[str]:
    """The teacher's levels that a method compares; an empty list for all levels."""
    return [pair[1] for pair in getattr(method, "pairs", ())]


def _compared(method: Method, teacher: Knowledge) -> list[Tensor]:
    levels = _levels(method)
    return [
        x
        for need in _compared_needs(method)
        for name in _MAPS[need]
        for level, x in teacher.maps(name).items()
        if not levels or level in levels
    ]


def _set_stages(model: Distiller, stages: Mapping[str, nn.Module]) -> None:
    for name, stage in stages.items():
        model.distillation[name].uncertainty = stage


def _memory(measurement: Mapping[str, Any]) -> list[float]:
    """Bytes of a turn's peak; of the teacher's turn, the bytes that stay during the student's."""
    return measurement["kept_bytes" if measurement["name"] == TEACHER else "peak_bytes"]


def ratios(model: nn.Module) -> Iterator[Ratio]:
    """The ratios between the turns of a distiller."""
    if not isinstance(model, Distiller):
        return
    methods, modes = methods_of(model.distillation), uet_modes(model.distillation)
    yield Ratio(f"{DISTILLED} / ({ALONE} + {TEACHER})", {DISTILLED: 1}, [ALONE, TEACHER])
    yield Ratio(f"{DISTILLED} / {ALONE}", {DISTILLED: 1}, [ALONE])
    for suffix in modes:
        yield Ratio(
            f"memory: {DISTILLED}{suffix} / ({ALONE} + {TEACHER} that stay)",
            {DISTILLED + suffix: 1},
            [ALONE, TEACHER],
            _memory,
        )
    if modes[""]:
        on, off = (x if x in modes else "" for x in (" with UET", " without UET"))
        yield Ratio(f"{DISTILLED} with UET / without", {DISTILLED + on: 1}, [DISTILLED + off])
        own = {name + on: 1 for name in modes[""]} | {name + off: -1 for name in modes[""]}
        yield Ratio(f"UET's share of the {DISTILLED} with it", own, [DISTILLED + on])
    for name, method in methods.items():
        for suffix in [x for x, stages in modes.items() if not x or name in stages]:
            one = name + suffix
            yield Ratio(f"{one} / {reference(method)}", {one: 1}, [reference(method)])
