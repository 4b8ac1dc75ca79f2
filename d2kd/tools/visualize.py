"""Draw what a detector finds and what its teacher looks at, as one PNG.

For any config of a detector or a distiller, there is one row for each image, and these columns as
far as the config has them:

  detections   of the student, of the same student trained alone (--alone), and of the teacher
  attention    FGD's spatial attention of each network
  FGD          its foreground mask
  UET          mean and uncertainty of the teacher's features
  PGD          the key regions and their Gaussians, for each tower
  PFI          where the predictions of student and teacher differ, for each level
  RM           how the networks rank the candidates of an object
  labels       the pseudo labels of `d2kd label` (--labels), with their regions to ignore

The images are files (--images), a registered set (--dataset, by default the config's test set), or
the images of a file of pseudo labels (--labels). If there are more than --count images, as many
are drawn, evenly spread over all. Files have no ground truth: then the columns that need objects
are left out, and all detections are drawn as correct ones. Pseudo labels stand for the objects, as
in training. An image that cannot be read is named and left out, and the exit status is then 1.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("visualize", "d2kd visualize", sys.argv[1:]))

import argparse
import copy
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from omegaconf import DictConfig, OmegaConf
from torch import nn

from d2kd import Teacher, model_zoo
from d2kd.checkpoint import load_strictly
from d2kd.checks import nearest
from d2kd.commands import add_debug, config_first
from d2kd.config import check_config, load_config
from d2kd.data import register_all
from d2kd.data.classes import classes_of_test_set
from d2kd.data.images import find_images
from d2kd.loading import build_student
from d2kd.methods import Method
from d2kd.pseudo import load_pseudo_labels
from d2kd.readers import get_reader
from d2kd.tools.few_detections import threshold_hint
from d2kd.values import check_number
from d2kd.visualize import (
    Networks,
    Picture,
    columns,
    compose_sheet,
    image_format,
    make_picture,
    spread,
)

__all__ = ["main"]

EXAMPLES = """\
examples:
  d2kd visualize my_distilled.py --weights output/my_distilled/model_final.pth --output output/look
  d2kd visualize my_student.py --weights my_student.pth --images photos/ --output output/look
"""


def load_records(args: argparse.Namespace, cfg: DictConfig) -> list[dict]:
    """Dicts in the format of Detectron2's `DatasetCatalog`; of files, they have no annotations.

    Raises:
        ValueError: there is no such set, or no image; or the file of labels has changed.
        FileNotFoundError: a file is missing.
    """
    if args.images:
        records: list[dict] = [dict(file_name=str(path)) for path in find_images(args.images)]
    elif args.labels:
        records = load_pseudo_labels(args.labels)
    else:
        name = _dataset_name(args, cfg)
        if name not in DatasetCatalog.list():
            hint = nearest(name, DatasetCatalog.list())
            raise ValueError(f"--dataset: expected a registered dataset, found {name!r}.{hint}")
        records = DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"expected images, found none in {args.labels or name}.")
    return list(spread(records, args.count))


def read_pictures(
    records: Sequence[dict], mapper: Callable[[dict], dict], *, pseudo: bool
) -> tuple[list[Picture], list[str]]:
    """The images that can be read, and for each of the others an error.

    Raises:
        ValueError: no image can be read.
    """
    pictures: list[Picture] = []
    unreadable: list[str] = []
    for record in records:
        try:
            pictures.append(make_picture(record, mapper, pseudo=pseudo))
        except ValueError as error:
            unreadable.append(str(error))
    if not pictures:
        listed = "\n".join(unreadable)
        raise ValueError(f"expected an image that can be read, found none:\n{listed}")
    return pictures, unreadable


def _dataset_name(args: argparse.Namespace, cfg: DictConfig) -> str:
    names = args.dataset or OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not names:
        raise ValueError("expected --images, --dataset or a test set in the config, found none.")
    return names if isinstance(names, str) else names[0]


def load_networks(args: argparse.Namespace, cfg: DictConfig, input_format: str) -> Networks:
    """The students for which there are weights, and the teacher and methods that the config has.

    Raises:
        ValueError: there is nothing to draw, or weights do not fit.
    """
    has_teacher = cfg.model.get("teacher") is not None
    weights = args.weights or (None if has_teacher else cfg.train.get("init_checkpoint"))
    roles = {"student" if "student" in cfg.model else "detector": weights}
    if args.alone:
        roles = {"student alone": args.alone, "distilled": weights}
    students = {role: _load_student(cfg, path, role) for role, path in roles.items() if path}
    teacher: Teacher | None = instantiate(cfg.model.teacher) if has_teacher else None
    if teacher is not None:
        teacher.to(cfg.train.device)
    if not students and teacher is None and not args.labels:
        raise ValueError("--weights: expected a checkpoint of the config's detector, found none.")
    return Networks(students, teacher, load_methods(cfg, students, teacher), input_format)


def _load_student(cfg: DictConfig, weights: str, role: str) -> nn.Module:
    model = build_student(cfg.model, pretrained=False).model
    try:
        counts = load_strictly(model, weights)
    except ValueError as error:
        if role != "student alone":
            raise
        raise ValueError(
            f"--alone: expected a checkpoint of the config's student, trained without a teacher, "
            f"found: {error}"
        ) from error
    print(f"{type(model).__name__}: {counts} from {weights}")
    return model.to(cfg.train.device).eval()


def load_methods(
    cfg: DictConfig, students: dict[str, nn.Module], teacher: Teacher | None
) -> dict[str, Method]:
    """The methods of a config, set up for its student and its teacher.

    Raises:
        ValueError: a method does not fit the two.
    """
    methods: Any = instantiate(cfg.model.get("methods")) if teacher is not None else None
    if not methods or teacher is None:
        return {}
    # Without weights, a student that is not drawn says which levels the methods pair.
    student = list(students.values())[-1] if students else _build_student(cfg)
    for method in methods.values():
        method.setup(get_reader(student), teacher.reader)
    return dict(methods.items())


OVERRIDE = re.compile(r"[+~]*[\w.]+=")  # a path with a slash before the = is none


def _build_student(cfg: DictConfig) -> nn.Module:
    return build_student(cfg.model, pretrained=False).model.to(cfg.train.device)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="d2kd visualize",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", help="config of a detector or a distiller, or a name in d2kd's model zoo")
    add("overrides", nargs="*", help="fields of the config, key=value, before other options")
    add("--weights", help="checkpoint of the student; default: train.init_checkpoint of a detector")
    add("--alone", metavar="WEIGHTS", help="checkpoint of the same student, trained alone")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", nargs="+", metavar="PATH", help="files or folders")
    source.add_argument("--dataset", help="a registered set; default: the config's test set")
    source.add_argument("--labels", metavar="FILE", help="labels.json of `d2kd label`")
    add("--count", type=int, default=5, help="images to draw, evenly spread; default: 5")
    add("--threshold", type=float, default=0.3, help="least score of a detection; default: 0.3")
    add("--level", help="pyramid level of attention and regions; default: the finest")
    add("--output", type=Path, required=True, help="folder for visualize.png")
    add_debug(parser)
    args = parser.parse_intermixed_args(config_first(argv))
    # --images also takes the overrides that follow it.
    swallowed = [x for x in args.images or () if OVERRIDE.match(x) and not Path(x).exists()]
    args.images = [x for x in args.images or () if x not in swallowed] or None
    args.overrides += swallowed
    if args.count < 1:
        parser.error(f"--count: expected at least 1, found {args.count}")
    check_number("--threshold", args.threshold, most=1)
    if args.alone and not args.weights:
        parser.error("--alone: expected --weights of the distilled student, too, found none")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    entry, name = None, os.path.basename(args.config)
    if args.config in model_zoo.list_detectors():
        entry = model_zoo.find_entry(args.config)
        name, args.config, args.weights = args.config, entry.config, args.weights or str(entry.path)
    register_all()
    cfg = load_config(args.config, args.overrides)
    fields = copy.deepcopy(cfg)
    fields.dataloader = {}  # the images may have nothing to do with its data sets
    check_config(fields)
    node = OmegaConf.select(cfg, "dataloader.test.mapper")
    if node is None:
        raise ValueError(f"{args.config}: expected dataloader.test.mapper, found none.")
    mapper = instantiate(node)
    records = load_records(args, cfg)
    networks = load_networks(args, cfg, image_format(mapper))
    pictures, unreadable = read_pictures(records, mapper, pseudo=bool(args.labels))
    count = _num_classes(networks, cfg)
    names = entry.classes if entry else classes_of_test_set(cfg, count, args.dataset)
    sheet = columns(pictures, networks, names, threshold=args.threshold, level=args.level)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "visualize.png"
    has_truth = pictures[0].truth is not None
    compose_sheet(
        path,
        sheet,
        title=name,
        subtitle=_subtitle(networks),
        caption=_caption(args, networks, has_truth),
        legend=has_truth and bool(networks.detectors),
    )
    print(f"Written to {path}")
    if hint := threshold_hint(_best_scores(networks, pictures), args.threshold):
        print(hint)
    if unreadable:
        print(f"{len(unreadable)} of {len(records)} images are left out:", file=sys.stderr)
        print(*unreadable, sep="\n", file=sys.stderr)
    return int(bool(unreadable))


def _best_scores(networks: Networks, pictures: Sequence[Picture]) -> list[float]:
    """The highest score of the last student in each picture; [] without a student."""
    if not networks.students:
        return []
    role = list(networks.students)[-1]
    with torch.no_grad():
        found = [networks.detect(role, picture.inputs) for picture in pictures]
    return [float(x.scores.max(initial=0)) for x in found if x is not None]


def _num_classes(networks: Networks, cfg: DictConfig) -> int:
    models = list(networks.students.values()) or [_build_student(cfg)]
    return get_reader(models[0]).num_classes


def _subtitle(networks: Networks) -> str:
    roles = [f"{role} ({type(model).__name__})" for role, model in networks.students.items()]
    if networks.teacher is not None:
        roles.append(f"teacher ({networks.teacher.reader.name})")
    return " and ".join(roles)


def _caption(args: argparse.Namespace, networks: Networks, has_truth: bool) -> str:
    caption = ""
    if args.labels:
        caption += "Pseudo labels are yellow, with their scores; hatched regions are ignored. "
    roles = [*networks.students, *(["teacher"] if networks.teacher else [])]
    if roles:
        caption += f"Detections with a score of at least {args.threshold:g}. "
        if not has_truth:
            caption += "There is no ground truth: all detections have the color of correct ones. "
        level = args.level or next(iter(networks.reader(roles[-1]).shapes))
        caption += f"Attention, FGD's key regions and UET: level {level} of the pyramid."
    return caption
