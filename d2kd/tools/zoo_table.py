"""Try every detector of Detectron2's model zoo as a teacher and as a student, and write a table.

    python -m d2kd.tools.zoo_table --write docs/detectors.md

Each detector is built with random weights. As a teacher, it shows its features for an image. As a
student, it takes one training step with a copy of itself as teacher and PKD as method, and its
gradients must be finite. The methods are those that accept the detector as student and as teacher.
All of them take some minutes on one core.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("zoo_table", "python -m d2kd.tools.zoo_table", sys.argv[1:]))

import argparse
import copy
import functools
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from d2kd import methods
from d2kd.distiller import Distiller
from d2kd.files import write_file
from d2kd.loading import build_detector
from d2kd.readers import get_reader
from d2kd.teacher import Teacher
from d2kd.tools.benchmark.setting import settle

__all__ = ["Row", "entries", "main", "render", "replace_table", "try_detector"]

FEATURES = ("Mimic", "FGD", "MGD", "PKD", "CWD")
HEADS = ("PGD", "CrossKD", "LD", "RankMimic", "PFI")
BEGIN, END = "<!-- begin: python -m d2kd.tools.zoo_table -->", "<!-- end -->"
_SIZE = 128, 160  # of the image, in pixels
# Folders of parts, of Detectron2's own quick checks, and a classifier.
_NO_DETECTORS = ("common/", "quick_schedules/", "Misc/torchvision_imagenet")


class Row(NamedTuple):
    """What was found for one detector.

    Attributes:
        name: in the model zoo.
        kind: its meta-architecture.
        teacher, student: "yes", or why not.
        methods: names of the methods that accept it.
    """

    name: str
    kind: str
    teacher: str
    student: str
    methods: Sequence[str] = ()


def entries() -> list[str]:
    """The detectors in the model zoo of the installed Detectron2."""
    from detectron2 import model_zoo  # imports pkg_resources, which is slow and warns

    root = Path(os.path.dirname(model_zoo.__file__), "configs")
    names = sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in (".py", ".yaml")
    )
    return [x for x in names if not x.startswith(_NO_DETECTORS) and "Base-" not in x]


def try_detector(name: str, build: Callable[[], nn.Module]) -> Row:
    """Build a detector and try it as a teacher and as a student."""
    torch.manual_seed(0)
    try:
        model: Any = build()
    except ImportError as e:
        needed = f"the package {e.name}" if e.name else "Detectron2's compiled operators"
        return Row(name, "", *[f"not tried: needs {needed}"] * 2)
    kind = type(model).__name__
    try:
        reader = get_reader(model)
    except TypeError:
        return Row(name, kind, "no", "without methods")
    batch = [_inputs(model)]
    if hasattr(getattr(model, "roi_heads", None), "batch_size_per_image"):
        model.roi_heads.batch_size_per_image = 16  # 512 take minutes in heads without a pyramid
    settle(model, batch)  # random weights would make the values of a hundred layers overflow
    names = [x for x in (*FEATURES, *HEADS) if _accepts(x, reader)]
    teacher = Teacher(copy.deepcopy(model), None, input_format="BGR")
    return Row(name, kind, _teaches(teacher, batch), _learns(model, teacher, batch), names)


def _accepts(name: str, reader: Any) -> bool:
    try:
        getattr(methods, name)().setup(reader, reader)
    except ValueError:
        return False
    return True


def _teaches(teacher: Teacher, batch: Sequence[dict]) -> str:
    maps = teacher(batch, input_format="BGR", padded_size=_SIZE).features
    return "yes" if maps and all(x.isfinite().all() for x in maps.values()) else "not finite"


def _learns(model: nn.Module, teacher: Teacher, batch: Sequence[dict]) -> str:
    names = methods.Methods(pkd=methods.PKD())
    distiller = Distiller(student=model, teacher=teacher, methods=names, input_format="BGR")
    with EventStorage():
        losses = distiller.train()(batch)
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = bool(gradients) and all(x.isfinite().all() for x in gradients)
    return "yes" if finite and "loss_distill_pkd" in losses else "not finite"


def _inputs(model: Any) -> dict:
    """An image with everything that a detector of the zoo learns from."""
    height, width = _SIZE
    truth = Instances(_SIZE)
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 100.0, 90.0], [60.0, 30.0, 150.0, 120.0]]))
    truth.gt_classes = torch.zeros(2, dtype=torch.long)
    truth.gt_masks = BitMasks(torch.ones(2, *_SIZE, dtype=torch.bool))
    truth.gt_keypoints = Keypoints(torch.tensor([[[70.0, 60.0, 2.0]] * 17] * 2))
    pixels = torch.randint(0, 256, (3, *_SIZE), generator=torch.Generator().manual_seed(0))
    inputs = dict(image=pixels.to(torch.uint8), instances=truth, height=height, width=width)
    inputs["sem_seg"] = torch.zeros(_SIZE, dtype=torch.long)
    if getattr(model, "proposal_generator", 0) is None:  # Fast R-CNN
        boxes = Boxes(truth.gt_boxes.tensor + 2)
        inputs["proposals"] = Instances(
            _SIZE, proposal_boxes=boxes, objectness_logits=torch.ones(2)
        )
    return inputs


def rows(names: Sequence[str]) -> Iterator[Row]:
    """`try_detector` for entries of the zoo, one after the other."""
    for name in names:
        yield try_detector(name, functools.partial(_build, name))
        gc.collect()


def _build(name: str) -> nn.Module:
    return build_detector(name).model


def render(found: Sequence[Row]) -> str:
    """The table in Markdown, with a line that counts."""
    lines = ["| model zoo entry | detector | as teacher | as student | methods |", "|---" * 5 + "|"]
    for row in found:
        few = set(FEATURES) <= set(row.methods)
        listed = ["features", *(x for x in row.methods if x in HEADS)] if few else [*row.methods]
        lines.append(
            f"| {row.name} | {row.kind} | {row.teacher} | {row.student} | {', '.join(listed)} |"
        )
    tried = [row for row in found if not row.teacher.startswith("not tried")]
    works = sum(row.teacher == row.student == "yes" for row in tried)
    others = len(found) - len(tried)
    count = f"{works} of {len(tried)} detectors teach and learn; {others} were not tried."
    return "\n".join([*lines, "", count])


def replace_table(page: str, table: str) -> str:
    """The page with another table between its two marks.

    Raises:
        ValueError: the page does not have the marks.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"--write: expected a page with the lines {BEGIN!r} and {END!r}, found one without."
        )
    return f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m d2kd.tools.zoo_table", description=__doc__)
    parser.add_argument("--write", metavar="PAGE", help="page whose table is replaced")
    parser.add_argument("names", nargs="*", help="entries of the zoo. Default: all")
    args = parser.parse_args(argv)
    found = []
    for row in rows(args.names or entries()):
        print(*row[:4], ", ".join(row.methods), sep="  ", flush=True)
        found.append(row)
    table = render(found)
    print(table.splitlines()[-1])
    if args.write:
        page = Path(args.write)
        write_file(page, replace_table(page.read_text(), table))
    return 0 if all("not finite" not in (row.teacher, row.student) for row in found) else 1
