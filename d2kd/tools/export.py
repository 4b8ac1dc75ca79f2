"""Write a student as plain Detectron2 checkpoint and config, safetensors, TorchScript and ONNX.

Of a distiller's config and checkpoint, the student alone is written. The config is a LazyConfig.
RetinaNet, Faster and Cascade R-CNN with Detectron2's ResNet also get one of the older YAML configs
(yacs), for get_cfg() and DefaultPredictor. TorchScript files, ONNX files and the yacs config are
run on real images, and their detections are compared with the Detectron2 model box by box. If they
differ, nothing is written. A model card (README.md, model_card.json) lies beside the files.
docs/export.md is the guide.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("export", "d2kd export", sys.argv[1:]))

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from omegaconf import OmegaConf

from d2kd.commands import add_debug, config_first
from d2kd.data import register_all
from d2kd.data.images import find_images
from d2kd.export import COMPARED, FORMATS, Source, export, open_source
from d2kd.export.quantize import check_test_set
from d2kd.values import check_number

__all__ = ["main"]

EXAMPLES = """\
examples:
  d2kd export deep_pcb_small --images photos/ --output output/deep_pcb_small
  d2kd export my_distilled.py --weights output/my_distilled/model_final.pth --output output/export
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="d2kd export",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", help="a name in d2kd's model zoo, or a config of a detector or a distiller")
    add("--weights", help="checkpoint of the student or of the distiller, for a config")
    add("--output", type=Path, required=True, help="the new folder")
    add("--formats", nargs="+", choices=FORMATS,
        help="default: all; yacs only where it can say what the detector is")  # fmt: skip
    add("--images", nargs="+", metavar="PATH",
        help="files or folders to compare on; default: from the config's test set")  # fmt: skip
    add("--count", type=int, default=3, help="number of these images; default: 3")
    add("--classes", nargs="+", help="default: the zoo's, or those of the config's test set")
    add("--ap", type=float, help="box AP in percent for the card; default: from metrics.json")
    add("--batch", type=int, metavar="N",
        help="TorchScript and ONNX take N images of one size; default: one image")  # fmt: skip
    add("--int8", action="store_true",
        help="also write an int8 ONNX file, and measure both on the test set")  # fmt: skip
    add("--calibration", nargs="+", metavar="PATH",
        help="files or folders for --int8; default: from the config's training set")  # fmt: skip
    add("--calibration-count", type=int, default=100, help="number of these images; default: 100")
    add_debug(parser)
    args = parser.parse_args(config_first(argv))
    for name in ("count", "calibration_count", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option}: expected at least 1, found {value}")
    if args.ap is not None:
        check_number("--ap", args.ap, most=100)
    return args


def pictures(option: str, paths: Sequence[str] | None, source: Source, section: str) -> list[Path]:
    """The given images, or those of a data set of the config.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there are no images, or the set is not registered.
    """
    if paths:
        return find_images(paths)
    register_all()
    node = OmegaConf.select(source.cfg, f"dataloader.{section}.dataset")
    names = node.get("names") if OmegaConf.is_dict(node) else None
    for name in [names] if isinstance(names, str) else names or [None]:
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"{option}: expected images, found none, and the config's set {name!r} is not "
                f"registered. Add {option} PATH, or give the config that registers the set: a "
                f"run's config.yaml does not."
            )
    return [Path(record["file_name"]) for record in instantiate(node)]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    classes = args.classes or ()
    source = open_source(args.config, args.weights, classes=classes, device="cpu")
    compared = set(COMPARED) & set(args.formats or FORMATS)
    images = pictures("--images", args.images, source, "test")[: args.count] if compared else []
    calibration: list[Path] = []
    if args.int8:
        check_test_set(source.cfg)
        found = pictures("--calibration", args.calibration, source, "train")
        # Spread over the set: neighbors are often alike.
        calibration = found[:: max(1, len(found) // args.calibration_count)]
        calibration = calibration[: args.calibration_count]
    card = export(
        source,
        args.output,
        images,
        formats=args.formats,
        batch=args.batch,
        calibration=calibration,
        ap=args.ap,
    )
    for name, file in card["files"].items():
        check, ap = file.get("check"), file.get("AP")
        equal = f", {check['detections']} detections compared" if check else ""
        accuracy = f", AP {ap:.1f}" if ap is not None else ""
        print(f"{name}: {file['bytes'] / 1e6:.2f} MB{equal}{accuracy}")
    for name, reason in card["left_out"].items():
        print(f"{name}: left out, because {reason}")
    print(f"Written to {args.output}")
    return 0
