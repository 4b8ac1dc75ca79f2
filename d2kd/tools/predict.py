"""Detect objects on images: pictures with boxes, and one file in COCO's format with scores.

The output folder gets predictions.json and a picture for each image. The file has images,
categories (class index + 1) and annotations. Each annotation also has its score. An image that
cannot be read is named and left out, and the exit status is then 1.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("predict", "d2kd predict", sys.argv[1:]))

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

from d2kd.commands import add_debug, config_first
from d2kd.data.images import find_images
from d2kd.data.pixels import read_pixels
from d2kd.export import open_source
from d2kd.files import check_new_folder, write_file, write_json
from d2kd.progress import track
from d2kd.tools.few_detections import threshold_hint
from d2kd.values import check_number

__all__ = ["main"]

LONGEST_STEM = 50  # characters of a name that pictures keep; systems allow 255 bytes

EXAMPLES = """\
examples:
  d2kd predict deep_pcb_small --images photos/ --output output/found
  d2kd predict my_student.py --weights my_student.pth --images a.jpg b.jpg --output output/found
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="d2kd predict",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", help="a name in d2kd's model zoo, or a config of a detector or a distiller")
    add("--weights", help="checkpoint of the student or of the distiller, for a config")
    add("--images", nargs="+", metavar="PATH", required=True, help="files or folders")
    add("--output", type=Path, required=True, help="the new folder")
    add("--threshold", type=float, default=0.3, help="least score of a detection; default: 0.3")
    add("--classes", nargs="+", help="default: the zoo's, or those of the config's test set")
    add("--device", help="default: the GPU if there is one, else the CPU")
    add("--no-pictures", action="store_true", help="write predictions.json only")
    add_debug(parser)
    args = parser.parse_args(config_first(argv))
    check_number("--threshold", args.threshold, most=1)
    return args


def draw(pixels: np.ndarray, found: Instances, metadata: Metadata, output: Path) -> None:
    """Write a copy of a picture with its detections, as Detectron2's own demo draws them."""
    drawn = Visualizer(pixels, metadata).draw_instance_predictions(found).get_image()
    written, content = cv2.imencode(output.suffix, drawn[..., ::-1])
    if not written:
        raise OSError(f"{output}: expected to write a picture, found that OpenCV cannot.")
    write_file(output, content.tobytes())


def to_annotations(found: Instances, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Detections of an image as COCO's annotations with "score"; boxes in pixels of the picture."""
    boxes: Boxes = found.pred_boxes
    xywh = BoxMode.convert(boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for i, (box, label, score) in enumerate(
            zip(xywh, found.pred_classes.tolist(), found.scores.tolist(), strict=True)
        )
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    paths = find_images(args.images)
    check_new_folder("--output", args.output)
    detector = open_source(
        args.config, args.weights, classes=args.classes or (), device=args.device
    ).detector
    args.output.mkdir(parents=True, exist_ok=True)
    # Not in Detectron2's catalog: names there must be unique.
    metadata = Metadata(name="predictions", thing_classes=list(detector.classes))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    best_scores: list[float] = []
    unreadable: list[str] = []
    for image_id, path in enumerate(track(paths, len(paths), "images")):
        try:
            pixels = read_pixels(path)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        found = detector(pixels, image_format="RGB")
        best_scores.append(max(found.scores.tolist(), default=0.0))
        found = found[found.scores >= args.threshold]
        height, width = found.image_size
        images.append(dict(id=image_id, file_name=str(path), height=height, width=width))
        annotations += to_annotations(found, image_id, len(annotations) + 1)
        if not args.no_pictures:
            # Numbers keep pictures of the same name in two folders apart.
            name = f"{image_id:05d}_{path.stem[:LONGEST_STEM]}.jpg"
            draw(pixels, found, metadata, args.output / name)
    if not images:
        lines = "\n".join(unreadable)
        raise ValueError(f"--images: expected an image that can be read, found none.\n{lines}")
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(detector.classes)]
    content = dict(images=images, annotations=annotations, categories=categories)
    write_json(args.output / "predictions.json", content)
    counts = f"{_count(len(annotations), 'detection')} on {_count(len(images), 'image')}"
    print(f"{counts}, written to {args.output}")
    if hint := threshold_hint(best_scores, args.threshold):
        print(hint)
    if unreadable:
        print(f"{len(unreadable)} of {len(paths)} images are left out:", file=sys.stderr)
        print(*unreadable, sep="\n", file=sys.stderr)
    return int(bool(unreadable))
