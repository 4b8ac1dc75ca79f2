"""Put a trained student into d2kd's model zoo: its weights and its row of the table.

The weights become NAME.safetensors next to the config. The row goes into students.json, in place of
a row of that name. Its GFLOPs are counted on one picture of the data. The row is also printed in
Markdown, for docs/model_zoo.md. Run this in a checkout.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("publish", "python -m d2kd.tools.publish", sys.argv[1:]))

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from d2kd import model_zoo
from d2kd.commands import add_debug
from d2kd.data import register_all
from d2kd.evaluation.figures import count_gflops, count_parameters
from d2kd.model_zoo.students import write_entry
from d2kd.readers import get_reader
from d2kd.recipes import CONFIGS
from d2kd.values import check_number

__all__ = ["main"]

MAX_BYTES = 5_000_000  # of a file of weights: every clone and every package has it

EXAMPLES = """\
examples:
  python -m d2kd.tools.publish experiments/real/neu_det/student.py \\
      output/real/neu_det/distill/model_final.pth neu_det_tiny --ap 31.2
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m d2kd.tools.publish",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", help="name of the student's config below configs/")
    add("checkpoint", help="the student's or the distiller's, or a .safetensors file")
    add("name", help="name for get_detector: small letters, digits and _")
    add("--ap", type=float, required=True, help="box AP in percent")
    add("--data", help="what --ap was measured on; default: the config's test set")
    add("--classes", nargs="+", help="default: the classes of the config's test set")
    add("--image", help="a picture of the data; default: the first of the config's test set")
    add("--training", default="docs/model_zoo.md", help="where the training command is documented")
    add("--labels", default="", help="which teacher made labels that it was trained on")
    add("--half", action="store_true", help="store fp16 values; measure --ap with this file")
    add_debug(parser)
    args = parser.parse_args(argv)
    check_number("--ap", args.ap, most=100)
    return args


def publish(args: argparse.Namespace) -> str:
    """Write the weights and the row.

    Args:
        args: from `parse_args`.

    Returns:
        the row in Markdown: name, config, AP, parameters, GFLOPs, bytes, start of the sha256.

    Raises:
        FileNotFoundError: the config, the checkpoint or the picture does not exist.
        ValueError: the name is not one, the checkpoint or the classes do not fit, the config's test
            set is needed and is not registered, or the file would be too large.
    """
    if not re.fullmatch(r"[a-z0-9_]+", args.name):
        raise ValueError(f"name: expected small letters, digits and _, found {args.name!r}.")
    config = args.config.removeprefix("configs/")
    source = Path(model_zoo.get_config_file(config))
    data = OmegaConf.select(model_zoo.get_config(config), "dataloader.test.dataset.names")
    data = data if isinstance(data, str) or not data else data[0]
    records = [] if args.image and args.classes else _records(data)
    classes = args.classes or MetadataCatalog.get(data).thing_classes
    detector = model_zoo.Detector(config, args.checkpoint, classes=classes, device="cpu")
    count = get_reader(detector.model).num_classes
    if len(classes) != count:
        raise ValueError(
            f"--classes: expected the names of the {count} classes of {config}, found "
            f"{len(classes)}: {', '.join(classes)}."
        )
    picture = detector.make_input(args.image or records[0]["file_name"])
    gflops = count_gflops(detector.model, [picture])
    weights = source.with_name(f"{args.name}.safetensors")
    digest = model_zoo.save_student(
        source, args.checkpoint, weights, half=args.half, max_bytes=MAX_BYTES
    )
    entry = model_zoo.Entry(
        config=config,
        weights=weights.relative_to(CONFIGS).as_posix(),
        sha256=digest,
        classes=tuple(classes),
        ap=args.ap,
        data=args.data or str(data),
        parameters=count_parameters(detector.model),
        gflops=round(gflops, 4),
        training=args.training,
        labels=args.labels,
    )
    write_entry(args.name, entry)
    size = weights.stat().st_size / 1e6
    cells = (
        f"`{args.name}`",
        f"`configs/{config}`",
        entry.data,
        f"{entry.ap:.1f}",
        f"{entry.parameters / 1e6:.2f} M",
        f"{entry.gflops:.3f}",
        f"{size:.1f} MB",
        f"`{digest[:12]}`",
    )
    return f"| {' | '.join(cells)} |"


def _records(name: str | None) -> list[dict]:
    """The images of the config's test set, which also gives its classes."""
    register_all()
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"expected the config's test set to be registered, found no {name!r}. Prepare it "
            f"(datasets/README.md), or give --classes and --image."
        )
    return DatasetCatalog.get(name)


def main(argv: Sequence[str] | None = None) -> int:
    print(publish(parse_args(argv)))
    return 0
