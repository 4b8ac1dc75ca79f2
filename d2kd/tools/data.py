"""Convert labels to COCO's format, as a folder that d2kd registers by itself.

The folder OUTPUT gets annotations/<split>.json and <split>/... with the images. If it lies in the
data folder (datasets/, or $DETECTRON2_DATASETS), configs find its splits as <folder>_<split>: for
example, datasets/neu_det has neu_det_train.

Images are hard links where the file system can, and copies otherwise. The originals are never
changed. A hard link is the same file under a second name: if you edit the pixels of one, the other
changes too. The folder is complete or absent. The same command may run again. A folder with other
content stays unless you give --replace.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("data", "d2kd data", sys.argv[1:]))

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2kd.commands import add_debug
from d2kd.data.convert import (
    Dataset,
    Split,
    convert_deep_pcb,
    convert_voc,
    convert_yolo,
    write_dataset,
)
from d2kd.data.layout import dataset_name

__all__ = ["main"]

EXAMPLES = """\
`d2kd data FORMAT --help` explains a format.

examples:
  d2kd data voc --images JPEGImages --annotations Annotations --output datasets/farm
  d2kd data yolo --images images --labels labels --names data.yaml --output datasets/farm \\
      --split train=train.txt --split val=val.txt
"""

VOC = """\
Convert Pascal VOC's XML.

A box has 1-based, inclusive corners: x = xmin - 1, width = xmax - xmin + 1. Every image of a split
needs an XML file of its name. Category ids are 1, 2, ... in the order of the sorted names, or of
--classes. A difficult object is an object as any other and has the key "difficult": 1, which
COCO's evaluation does not know; see --ignore-difficult.
"""

VOC_EXAMPLES = """\
examples:
  d2kd data voc --images IMAGES --annotations ANNOTATIONS --output datasets/neu_det \\
      --split train=1-200 --split val=201-240 --split test=241-300
  d2kd data voc --images JPEGImages --annotations Annotations --output datasets/farm \\
      --split train=ImageSets/Main/train.txt --split val=ImageSets/Main/val.txt
"""

YOLO = """\
Convert YOLO's text files, with lines of class, x, y, width and height.

Category ids are YOLO's classes plus 1. An image without a text file is an image without boxes; a
warning counts them. Polygons are not converted.
"""

YOLO_EXAMPLES = """\
examples:
  d2kd data yolo --images images --labels labels --names data.yaml --output datasets/farm
  d2kd data yolo --images images --labels labels --names names.txt --output datasets/farm \\
      --split train=1-800 --split val=801-1000
"""

DEEP_PCB = """\
Convert DeepPCB, with its official lists as splits.

Category ids are the types: 1 open, 2 short, 3 mousebite, 4 spur, 5 copper, 6 pin-hole. Templates
without defects are left out.
"""

DEEP_PCB_EXAMPLES = """\
examples:
  d2kd data deep_pcb DeepPCB --output datasets/deep_pcb
  d2kd data deep_pcb DeepPCB --output datasets/deep_pcb --val-every 5
"""

SPLIT_HELP = """NAME=FILE: the images that the file names, one a line, with or without suffix.
NAME=A-B: the images whose number, the last integer of the file name, is in A..B. Give it once for
each split; an image may be in one only. Default: one split "train" of all images"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="d2kd data", description=__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    add_debug(parser)
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")

    def add_format(name: str, summary: str, text: str, examples: str) -> argparse.ArgumentParser:
        return formats.add_parser(
            name, help=summary, description=text, epilog=examples, formatter_class=raw
        )

    voc = add_format("voc", "Pascal VOC's XML", VOC, VOC_EXAMPLES)
    yolo = add_format("yolo", "YOLO's text", YOLO, YOLO_EXAMPLES)
    deep_pcb = add_format("deep_pcb", "DeepPCB's text", DEEP_PCB, DEEP_PCB_EXAMPLES)

    def folder(part: argparse.ArgumentParser, name: str, text: str) -> None:
        part.add_argument(name, required=True, metavar="DIR", help=text)

    folder(voc, "--images", "folder of the images, and of folders with images")
    folder(voc, "--annotations", "folder of the XML files, named as the images")
    folder(yolo, "--images", "folder of the images, and of folders with images")
    folder(yolo, "--labels", "folder of the text files, named as the images")
    yolo.add_argument(
        "--names", required=True, metavar="FILE", help="data.yaml, or a name of a class a line"
    )
    deep_pcb.add_argument("root", metavar="ROOT", help="DeepPCB's repository, or PCBData in it")
    for part in (voc, yolo, deep_pcb):
        part.add_argument("--output", required=True, help="the folder to make: datasets/NAME")
    for part in (voc, yolo):
        part.add_argument("--split", action="append", default=[], help=SPLIT_HELP)
    voc.add_argument("--classes", metavar="A,B,...", help="names of the categories, in id order")
    voc.add_argument(
        "--zero-based",
        action="store_true",
        help="boxes count pixels from 0 and end after the last one, as some tools write them",
    )
    voc.add_argument(
        "--ignore-difficult",
        action="store_true",
        help="difficult objects get iscrowd 1: evaluation does not count detections on them, as "
        "in VOC's own, and training leaves them out",
    )
    deep_pcb.add_argument(
        "--val-every",
        type=int,
        metavar="N",
        help="move every N-th line of trainval.txt to a split val; default: no val",
    )
    for part in (voc, yolo, deep_pcb):
        part.add_argument(
            "--clip",
            action="store_true",
            help="cut all boxes at the border of their image. Without it, a box may go beyond by "
            "1 pixel, and more is an error. A warning counts the boxes that were cut",
        )
        part.add_argument(
            "--replace", action="store_true", help="remove another dataset that is in OUTPUT"
        )
    return parser


def _convert(args: argparse.Namespace) -> Dataset:
    if args.format == "deep_pcb":
        return convert_deep_pcb(args.root, val_every=args.val_every, clip=args.clip)
    splits = [Split.parse(text) for text in args.split]
    if args.format == "yolo":
        return convert_yolo(args.images, args.labels, args.names, splits, clip=args.clip)
    return convert_voc(
        args.images,
        args.annotations,
        splits,
        classes=args.classes.split(",") if args.classes is not None else None,
        zero_based=args.zero_based,
        ignore_difficult=args.ignore_difficult,
        clip=args.clip,
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    dataset = _convert(args)
    for note in dataset.notes:
        print(f"warning: {note}", file=sys.stderr)
    copied = write_dataset(args.output, dataset, replace=args.replace)
    folder = Path(args.output).expanduser().absolute().name
    for split, content in dataset.splits.items():
        boxes, images = len(content["annotations"]), len(content["images"])
        empty = images - len({a["image_id"] for a in content["annotations"]})
        without = f", {empty} of them without boxes" if empty else ""
        print(f"{dataset_name(folder, split)}: {images} images{without}, {boxes} boxes")
    if copied is None:
        print(f"{args.output} has this dataset already; nothing was written")
        return 0
    names = [category["name"] for category in content["categories"]]
    how = f"{copied} images are copies" if copied else "images are hard links"
    print(f"wrote {args.output}: {how}; {len(names)} categories: {', '.join(names)}")
    return 0
