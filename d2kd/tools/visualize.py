"""Draw what a detector finds and what its teacher looks at, as one PNG.

For any config of a detector or a distiller, there is one row for each image, and these columns as
far as the config has them: detections of the student and of the teacher against the ground truth;
FGD's spatial attention of teacher and student; FGD's key regions; mean and uncertainty of the
teacher's features by UET, if a method has MCDropout.

The images are files (--images) or the first images of a registered set (--dataset, by default the
config's test set). Files have no ground truth: then there are no key regions, and all detections
are drawn as correct ones.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("visualize", "d2kd visualize", sys.argv[1:]))

import argparse
import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from omegaconf import DictConfig, OmegaConf
from torch import nn

from d2kd import FeatureTeacher, Teacher, model_zoo
from d2kd.checkpoint import load_strictly
from d2kd.checks import nearest
from d2kd.commands import add_debug
from d2kd.config import check_config, load_config
from d2kd.data import register_all
from d2kd.loading import build_student
from d2kd.matching import Detections, GroundTruth
from d2kd.methods import MCDropout
from d2kd.readers import get_reader
from d2kd.tools.demo.choose import suppress_across_classes
from d2kd.tools.demo.pictures import Column, compose_sheet
from d2kd.values import check_number
from d2kd.visualize import (
    draw_detections,
    draw_heat,
    key_regions,
    spatial_attention,
    uncertainty,
)

__all__ = ["main"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

EXAMPLES = """\
examples:
  d2kd visualize my_distilled.py --weights output/my_distilled/model_final.pth --output output/look
  d2kd visualize my_student.py --weights my_student.pth --images photos/ --output output/look
"""


class Picture(NamedTuple):
    """One row of the sheet.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, the image as it is stored.
        inputs: the model's input, as the test mapper of the config makes it.
        resized: (h', w', 3) uint8 RGB, the pixels of `inputs`.
        truth: true boxes in pixels of the stored image; None without ground truth.
    """

    pixels: np.ndarray
    inputs: dict[str, Any]
    resized: np.ndarray
    truth: GroundTruth | None

    @property
    def resized_truth(self) -> GroundTruth | None:
        """True boxes in pixels of `resized`."""
        if self.truth is None:
            return None
        (h, w), (new_h, new_w) = self.pixels.shape[:2], self.resized.shape[:2]
        return self.truth._replace(boxes=self.truth.boxes * ([new_w / w, new_h / h] * 2))


class Detector(NamedTuple):
    """A detector to draw: its role, the network, and the channel order of its input."""

    role: str
    model: nn.Module
    input_format: str


def load_records(args: argparse.Namespace, cfg: DictConfig) -> list[dict]:
    """Dicts in the format of Detectron2's `DatasetCatalog`; of files, they have no annotations.

    Raises:
        ValueError: there is no such set, or no image.
        FileNotFoundError: a file is missing.
    """
    if args.images:
        paths: list[Path] = []
        for path in map(Path, args.images):
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            paths += [x for x in inside if not path.is_dir() or x.suffix.lower() in SUFFIXES]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"--images: expected a file, found none at '{path}'.")
        records: list[dict] = [dict(file_name=str(path)) for path in paths]
    else:
        name = _dataset_name(args, cfg)
        if name not in DatasetCatalog.list():
            hint = nearest(name, DatasetCatalog.list())
            raise ValueError(f"--dataset: expected a registered dataset, found {name!r}.{hint}")
        records = DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"expected images, found none in {args.images or name}.")
    return records[: args.count]


def _dataset_name(args: argparse.Namespace, cfg: DictConfig) -> str:
    names = args.dataset or OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not names:
        raise ValueError("expected --images, --dataset or a test set in the config, found none.")
    return names if isinstance(names, str) else names[0]


def make_picture(record: Mapping[str, Any], mapper: Callable[[dict], dict]) -> Picture:
    """Read an image and map it as for evaluation.

    Raises:
        ValueError: the file is no image.
    """
    try:
        pixels = utils.read_image(record["file_name"], format="RGB")
    except Exception as error:  # whatever the image library raises
        raise ValueError(
            f"expected an image that can be read at {record['file_name']!r}, found "
            f"{type(error).__name__}: {error}"
        ) from error
    height, width = pixels.shape[:2]
    given = {**copy.deepcopy(dict(record)), "height": height, "width": width}
    inputs = mapper(given)
    resized = inputs["image"].permute(1, 2, 0).numpy()
    if _image_format(mapper) == "BGR":
        resized = resized[..., ::-1]
    truth = GroundTruth.from_record(record) if "annotations" in record else None
    return Picture(pixels, inputs, np.ascontiguousarray(resized), truth)


def _image_format(mapper: Any) -> str:
    return getattr(mapper, "image_format", None) or "BGR"


def load_detectors(args: argparse.Namespace, cfg: DictConfig, image_format: str) -> list[Detector]:
    """The student, if there are weights for it, and the teacher, if the config has one.

    Raises:
        ValueError: there is nothing to draw, or weights do not fit.
    """
    detectors: list[Detector] = []
    weights = args.weights or cfg.train.get("init_checkpoint")
    has_teacher = cfg.model.get("teacher") is not None
    if args.weights or (weights and not has_teacher):
        model = build_student(cfg.model, pretrained=False).model
        print(f"{type(model).__name__}: {load_strictly(model, weights)} from {weights}")
        role = "student" if "student" in cfg.model else "detector"
        detectors.append(Detector(role, model, image_format))
    if has_teacher:
        teacher: Teacher = instantiate(cfg.model.teacher)
        if isinstance(teacher, FeatureTeacher):
            raise ValueError(
                f"model.teacher: expected a detector whose boxes can be drawn, found "
                f"{teacher.model.name}, which has features only. Draw the student with its own "
                f"config."
            )
        detectors.append(Detector("teacher", teacher.model, teacher.input_format))
    if not detectors:
        raise ValueError("--weights: expected a checkpoint of the config's detector, found none.")
    for _, model, _ in detectors:
        model.to(cfg.train.device).eval()
    return detectors


def find_dropout(cfg: DictConfig) -> MCDropout | None:
    """The first `MCDropout` among the methods' uncertainty stages."""
    for node in (cfg.model.get("methods") or {}).values():
        stage = node.get("uncertainty") if isinstance(node, DictConfig) else None
        module = instantiate(stage) if stage is not None else None
        if isinstance(module, MCDropout):
            return module
    return None


@torch.no_grad()
def columns(
    pictures: Sequence[Picture],
    detectors: Sequence[Detector],
    names: Sequence[str],
    *,
    image_format: str,
    threshold: float,
    level: str | None = None,
    dropout: MCDropout | None = None,
) -> Iterator[Column]:
    """The columns of the sheet; see the first lines of this module.

    Args:
        names: of the classes.
        image_format: channel order of the images in `Picture.inputs`.
        threshold: least score of a detection that is drawn.
        level: pyramid level of attention, key regions and uncertainty. Default: the finest.
        dropout: UET's, for the last two columns; needs a teacher.
    """

    def inputs_for(detector: Detector, picture: Picture) -> dict[str, Any]:
        flip = detector.input_format != image_format
        image = picture.inputs["image"]
        return {**picture.inputs, "image": image.flip(0) if flip else image}

    def detections(detector: Detector, picture: Picture) -> Callable[[Any], None]:
        (output,) = detector.model([inputs_for(detector, picture)])
        found = Detections.from_instances(output["instances"]).above(threshold)
        found = suppress_across_classes(found)
        truth = picture.truth or GroundTruth(found.boxes, found.classes)
        return lambda ax: draw_detections(ax, picture.pixels, found, truth, names)

    def heat(picture: Picture, values: np.ndarray, **style: Any) -> Callable[[Any], None]:
        return lambda ax: draw_heat(ax, picture.resized, values, **style)

    for one in detectors:
        yield Column(one.role.capitalize(), "detections", [detections(one, p) for p in pictures])
    for one in reversed(detectors):  # the teacher first: this is what the student learns from
        attention = [
            spatial_attention(one.model, inputs_for(one, p), level=level) for p in pictures
        ]
        drawings = [heat(p, values) for p, values in zip(pictures, attention, strict=True)]
        yield Column(f"{one.role.capitalize()}'s attention", "where its map is strong", drawings)
    last = detectors[-1]
    if all(p.truth is not None for p in pictures):
        # The root makes large boxes visible next to small ones.
        regions = [
            np.sqrt(key_regions(last.model, inputs_for(last, p), p.resized_truth, level=level))
            for p in pictures
            if p.resized_truth is not None
        ]
        style: dict[str, Any] = dict(cmap="viridis", opacity=0.6)
        drawings = [heat(p, values, **style) for p, values in zip(pictures, regions, strict=True)]
        yield Column("Key regions", "brighter cells weigh more", drawings)
    if dropout is not None and last.role == "teacher":
        maps = [
            uncertainty(last.model, inputs_for(last, p), dropout, level=level) for p in pictures
        ]
        for i, title in enumerate(("UET: mean", "UET: uncertainty")):
            drawings = [heat(p, values[i]) for p, values in zip(pictures, maps, strict=True)]
            yield Column(title, "of the teacher's features", drawings)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="d2kd visualize",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", help="LazyConfig of a detector or a distiller, or a name in d2kd's model zoo")
    add("overrides", nargs="*", help="fields of the config, key=value, before other options")
    add("--weights", help="checkpoint of the student; default: train.init_checkpoint of a detector")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", nargs="+", metavar="PATH", help="files or folders")
    source.add_argument("--dataset", help="a registered set; default: the config's test set")
    add("--count", type=int, default=5, help="images to draw; default: 5")
    add("--threshold", type=float, default=0.3, help="least score of a detection; default: 0.3")
    add("--level", help="pyramid level of attention and regions; default: the finest")
    add("--output", type=Path, required=True, help="folder for visualize.png")
    add_debug(parser)
    args = parser.parse_intermixed_args(argv)
    # --images also takes the overrides that follow it.
    swallowed = [x for x in args.images or () if "=" in x and not Path(x).exists()]
    args.images = [x for x in args.images or () if x not in swallowed] or None
    args.overrides += swallowed
    if args.count < 1:
        parser.error(f"--count: expected at least 1, found {args.count}")
    check_number("--threshold", args.threshold, most=1)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    entry = None
    if args.config in model_zoo.list_detectors():
        entry = model_zoo.find_entry(args.config)
        args.config, args.weights = entry.config, args.weights or str(entry.path)
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
    detectors = load_detectors(args, cfg, _image_format(mapper))
    pictures = [make_picture(record, mapper) for record in records]
    sheet = columns(
        pictures,
        detectors,
        entry.classes if entry else _class_names(args, cfg, detectors[0].model),
        image_format=_image_format(mapper),
        threshold=args.threshold,
        level=args.level,
        dropout=find_dropout(cfg),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "visualize.png"
    roles = " and ".join(f"{d.role} ({type(d.model).__name__})" for d in detectors)
    level = args.level or next(iter(get_reader(detectors[-1].model).shapes))
    caption = f"Detections with a score of at least {args.threshold:g}. "
    if pictures[0].truth is None:
        caption += "There is no ground truth: all detections have the color of correct ones. "
    compose_sheet(
        path,
        list(sheet),
        title=os.path.basename(args.config),
        subtitle=roles,
        caption=f"{caption}Attention, key regions and uncertainty: level {level} of the pyramid.",
    )
    print(f"Written to {path}")
    return 0


def _class_names(args: argparse.Namespace, cfg: DictConfig, model: nn.Module) -> list[str]:
    """Names of the classes where a data set knows them, else their numbers."""
    names = args.dataset or OmegaConf.select(cfg, "dataloader.test.dataset.names")
    name = names if isinstance(names, str) or not names else names[0]
    listed = list(MetadataCatalog.get(name).get("thing_classes", None) or []) if name else []
    count = get_reader(model).num_classes
    return [listed[i] if i < len(listed) else str(i) for i in range(count)]
