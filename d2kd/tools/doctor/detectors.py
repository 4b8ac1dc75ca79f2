"""What `d2kd doctor` says about teacher, student and methods of a config."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from d2kd.checkpoint import Checkpointer
from d2kd.inherit import inherit_weights
from d2kd.loading import build_detector, build_student
from d2kd.methods import Method
from d2kd.methods.base import LevelPair
from d2kd.readers import Reader, get_reader

from .report import OK, WARNING, Report

__all__ = [
    "check_classes",
    "check_inherit",
    "check_methods",
    "check_student",
    "check_teacher",
    "describe_pairs",
]


def check_teacher(report: Report, cfg: DictConfig) -> tuple[Reader | None, bool]:
    """Build the teacher and load its weights, as strictly as a training does.

    Returns:
        the teacher's reader, if it was built; whether its weights fit.
    """
    node = cfg.model.get("teacher")
    if node is None:
        report.warning("teacher", "model.teacher: none, so the student trains alone")
        return None, True
    with report.check("teacher"), torch.random.fork_rng(devices=[]):
        teacher = instantiate(node)
        if teacher.loaded:
            report.ok("teacher", f"{teacher.reader.name}: {teacher.loaded}")
        else:
            text = "weights=None, so no trained weights are loaded"
            report.warning("teacher", f"{teacher.reader.name}: {text}")
        return teacher.reader, True
    # What the methods learn from does not depend on the weights.
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
        setup = node.get("setup")
        return get_reader(build_detector(node.model, pretrained=False, setup=setup).model), False
    return None, False


def check_student(report: Report, cfg: DictConfig) -> tuple[Reader | None, bool]:
    """Build the student and load `train.init_checkpoint`, if it is a file.

    Returns:
        the student's reader, if it was built; whether it has the weights of a checkpoint.
    """
    reader, loaded = None, False
    with report.check("student"):
        model = build_student(cfg.model).model
        try:
            reader = get_reader(model)
        except TypeError:
            if cfg.model.get("methods"):
                raise
            text = "it trains without methods only, because d2kd cannot read its features"
            report.warning("student", f"{type(model).__name__}: {text}")
            return None, False
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        text = f"{reader.name}: {millions:.1f} M parameters"
        path = cfg.train.get("init_checkpoint")
        if not path:
            report.ok("student", f"{text}; train.init_checkpoint: none, so it starts from scratch")
        elif "://" in path:
            report.ok("student", f"{text}; {path} is not read here")
        elif not os.path.isfile(path):
            report.problem(
                "student", f"{text}; train.init_checkpoint: expected a file, found none at {path!r}"
            )
        else:
            loaded = _load(report, model, path, text)
    return reader, loaded


def _load(report: Report, model: nn.Module, path: str, text: str) -> bool:
    checkpointer = Checkpointer(model, save_to_disk=False)
    checkpointer.load(path)
    count = checkpointer.fit().matched
    line = f"{text}; {count} of its {len(model.state_dict())} tensors are in {path}"
    if count:
        report.ok("student", line)
    else:
        report.problem("student", f"{line}. Give a checkpoint of this detector.")
    return count > 0


def check_methods(
    report: Report, cfg: DictConfig, student: Reader | None, teacher: Reader | None
) -> None:
    """Report which level learns from which, for each method."""
    nodes = cfg.model.get("methods") if "student" in cfg.model else None
    if not nodes:
        if "student" in cfg.model:
            report.warning("methods", "model.methods: none, so the student trains alone")
        return
    for name in nodes:
        if name == "_target_":
            continue
        with report.check(str(name)):
            method = instantiate(nodes[name])
            if student is None or teacher is None:
                continue
            method.setup(student, teacher)
            text = f"{type(method).__name__}: {describe_method(method, student)}"
            if unpaired := unpaired_levels(method, student):
                report.warning(
                    str(name),
                    f"{text}. The teacher has no level with the stride of the student's "
                    f"{', '.join(unpaired)}, so nothing is distilled there",
                )
            else:
                report.ok(str(name), text)


def unpaired_levels(method: Method, student: Reader) -> list[str]:
    """The student's levels that a method leaves out, although its `levels` do not say so."""
    pairs = getattr(method, "pairs", ())
    if not pairs or getattr(method, "levels", None) is not None:
        return []
    paired = {pair.student for pair in pairs}
    heads = student.head_in_features or tuple(student.shapes)
    return [level for level in student.shapes if level in heads and level not in paired]


def describe_method(method: Method, student: Reader) -> str:
    """Which levels a method pairs, and by which adapters."""
    pairs = getattr(method, "pairs", ())
    if not pairs:
        levels = ", ".join(student.head_in_features)
        return f"{', '.join(sorted(method.needs))} of {levels or student.name}"
    adapters = getattr(method, "adapters", nn.ModuleDict())
    return describe_pairs(pairs, adapters)


def describe_pairs(pairs: Iterable[LevelPair], adapters: nn.Module) -> str:
    """For example "p3, p4 (strides 8, 16), 64 to 256 channels by 1x1 adapters"."""
    pairs = list(pairs)
    names = [
        p.student if p.student == p.teacher else f"{p.student} from {p.teacher}" for p in pairs
    ]
    strides = [
        f"{s.stride}" if s.stride == t.stride else f"{s.stride} from {t.stride}"
        for _, _, s, t in pairs
    ]
    convolutions = [m for m in adapters.modules() if isinstance(m, nn.Conv2d)]
    widths = {(m.in_channels, m.out_channels) for m in convolutions}
    if widths:
        channels = ", ".join(f"{a} to {b}" for a, b in sorted(widths)) + " channels by 1x1 adapters"
    else:
        widths = {(s.channels, t.channels) for _, _, s, t in pairs}
        shown = ", ".join(str(a) if a == b else f"{a} and {b}" for a, b in sorted(widths))
        channels = f"{shown} channels, no adapter"
    return f"{', '.join(names)} (strides {', '.join(strides)}), {channels}"


def check_inherit(
    report: Report, cfg: DictConfig, student: Reader | None, teacher: Reader | None
) -> None:
    """Report what the student inherits, if the config says `inherit=True`."""
    if not cfg.model.get("inherit") or student is None or teacher is None:
        return
    with report.check("inherit"):
        inherited = inherit_weights(student, teacher)
        few = inherited.share < 0.5
        hint = ". The student starts with little of its teacher." if few else ""
        report.add(WARNING if few else OK, "inherit", f"{inherited}{hint}")


def check_classes(
    report: Report,
    cfg: DictConfig,
    student: Reader | None,
    teacher: Reader | None,
    data: Mapping[str, int],
) -> None:
    """Compare the numbers of classes of student, teacher and data."""
    if student is None:
        return
    count = student.num_classes
    if teacher is not None and not teacher.num_classes:
        teacher = None  # a network that has features only
    found = {"student": count, **({"teacher": teacher.num_classes} if teacher else {}), **data}
    listed = ", ".join(
        f"{name} {n}" for name, n in found.items() if not name.startswith("boxes of")
    )
    problems = [
        f"{name} has {n}, expected at most the student's {count}"
        for name, n in data.items()
        if n > count
    ]
    if teacher is not None and teacher.num_classes != count and cfg.model.get("same_classes", True):
        problems.append(
            f"the teacher has {teacher.num_classes}, expected the student's {count}; set "
            f"num_classes alike, or model.same_classes=False to distill features only"
        )
    fewer = [name for name, n in data.items() if n < count and not name.startswith("boxes of")]
    if problems:
        report.problem("classes", f"{listed}: {'; '.join(problems)}")
    elif fewer:
        report.warning("classes", f"{listed}: the student has more than {', '.join(fewer)}")
    else:
        report.ok("classes", listed)
