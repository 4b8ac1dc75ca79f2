"""What to measure of a detector or a distiller, on random images. A part of benchmark.py.

Shapes: N images, C channels, H x W pixels or cells.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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

# What a method can need -> the maps of Knowledge that this is.
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
        trainers: from `build_trainers`; none, to measure the methods only.
        scene: what to call it.
        size: height and width in pixels.
        counts: numbers of boxes in each image.
        batch: number of images.
    """
    student = student_of(model)
    device = next(student.parameters()).device
    batches = {n: random_batch(size, n, batch, student) for n in counts}
    inputs = next(iter(batches.values()))
    teaches = isinstance(model, Distiller) and bool(model.distillation)
    settle(student, inputs)
    known, padded_size = None, None
    if teaches:
        settle(model.teacher.to(device).model, inputs)
        amp = trainers[ALONE].amp_dtype if trainers else None
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            known = record(model, inputs)
        padded_size = known[0].padded_size
    for n, inputs in batches.items():
        turn = functools.partial(Turn, scene, n)
        if trainers:
            yield from step_turns(turn, model, trainers, inputs, padded_size)
        if teaches:
            targets = Targets.from_inputs(inputs, device, get_reader(student).num_classes)
            yield from method_turns(turn, model, *known, targets)


def uet_modes(methods: Mapping[str, Method]) -> dict[str, dict[str, nn.Module]]:
    """What to add to a name -> the uncertainty stage of each method that has one.

    "" is as configured; " without UET" and " with UET" are there where they differ from it.
    """
    here = {name: m.uncertainty for name, m in methods.items() if hasattr(m, "uncertainty")}
    off = [isinstance(stage, nn.Identity) for stage in here.values()]
    modes = {"": here}
    if not all(off):
        modes[" without UET"] = {name: nn.Identity() for name in here}
    if any(off):
        modes[" with UET"] = {
            name: MCDropout() if isinstance(stage, nn.Identity) else stage
            for name, stage in here.items()
        }
    return modes


def record(model: Distiller, batch: Sequence[dict]) -> tuple[Knowledge, Knowledge]:
    """What the distiller gives its methods of student and teacher, without its graph.

    The student's maps and boxes are leaves that take gradients.
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
    """The student's step, the teacher's part and the distilled steps.

    Args:
        turn: `Turn` of a scene and a number of boxes.
        trainers: of the student by ALONE, and of the distiller, if it is one, by DISTILLED.
        padded_size: height and width of the student's padded batch; None without a distiller.
    """

    def step(trainer: Trainer, stages: Mapping[str, nn.Module]) -> dict:
        def run(_) -> None:
            if stages:
                _set_stages(model, stages)
            trainer.set_loader(itertools.repeat(batch))
            trainer.run_step()

        def forget() -> None:
            trainer.optimizer.zero_grad(set_to_none=True)

        return dict(phases={"step": run}, tidy=forget)

    yield turn(ALONE, **step(trainers[ALONE], {}))
    if DISTILLED not in trainers:
        return
    asked = dict(padded_size=padded_size, needs=model.teacher_needs)

    def teach(_) -> Knowledge:
        return model.teacher(batch, input_format=model.input_format, **asked)

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
    """Each method alone, with and without UET, and the squared errors to compare them with.

    Args:
        student, teacher: from `record`.
    """

    def backward(loss: Tensor) -> None:
        loss.backward()

    leaves = [x for name in sum(_MAPS.values(), ()) for x in student.maps(name).values()]
    leaves += [] if student.boxes is None else [student.boxes]
    modes = uet_modes(model.distillation)
    for name, method in model.distillation.items():

        def tidy(method: Method = method) -> None:
            method.zero_grad(set_to_none=True)
            for x in leaves:
                x.grad = None

        for suffix, stages in modes.items():
            if suffix and name not in stages:
                continue

            def forward(_, method: Method = method, stages: Mapping = stages) -> Tensor:
                _set_stages(model, stages)
                return sum(method(student, teacher, targets).values())

            yield turn(name + suffix, {"forward": forward, "backward": backward}, tidy)

    for name, method in {reference(m): m for m in model.distillation.values()}.items():
        pairs = [(torch.rand_like(x).requires_grad_(), x) for x in _compared(method, teacher)]

        def error(_, pairs: Sequence = pairs) -> Tensor:
            return sum(F.mse_loss(s, t) for s, t in pairs)

        def forget(pairs: Sequence = pairs) -> None:
            for s, _ in pairs:
                s.grad = None

        yield turn(name, {"forward": error, "backward": backward}, forget)


def reference(method: Method) -> str:
    """Name of the squared error on the maps that a method compares."""
    levels = " ".join(_levels(method))
    return f"squared error of {' and '.join(_compared_needs(method))} {levels}".strip()


def _compared_needs(method: Method) -> list[str]:
    return [need for need in sorted(_MAPS) if method.needs & {need, *_MAPS[need]}]


def _levels(method: Method) -> list[str]:
    """The teacher's levels that a method compares; none: all that there are."""
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


def _memory(measurement: Mapping[str, Any]) -> list[int]:
    """What a turn needs at most; of the teacher's, what stays while the student learns from it."""
    return measurement["kept_bytes" if measurement["name"] == TEACHER else "peak_bytes"]


def ratios(model: nn.Module) -> Iterator[Ratio]:
    """What a distiller's turns say together."""
    if not isinstance(model, Distiller):
        return
    methods, modes = model.distillation, uet_modes(model.distillation)
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
