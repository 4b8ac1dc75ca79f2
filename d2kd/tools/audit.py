"""Look for mistakes in data: in all sets of a config, in registered datasets, or in COCO files.

Annotations and the headers of the images are read. The command prints a table of the sets and each
defect with its number, an example, and what is done about it. Training, evaluation and labeling do
the same before they start. What was read is cached by size and time of change, in $D2KD_CACHE or
~/.cache/d2kd. The exit status is 1 if the data would be refused, else 0.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("audit", "d2kd audit", sys.argv[1:]))

import argparse
import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

from d2kd.audit import Audit, audit_config, audit_sets
from d2kd.commands import add_debug, config_first
from d2kd.config import check_config, load_config
from d2kd.data import register_all

__all__ = ["main"]

EXAMPLES = """\
examples:
  d2kd audit my_distilled.py
  d2kd audit datasets/farm/annotations/train.json --images datasets/farm/train
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="d2kd audit",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    what = "a LazyConfig and fields to change (key=value), registered datasets, or COCO files"
    add("what", nargs="+", help=what)
    add("--images", metavar="FOLDER", help="folder of the images of the COCO files")
    add_debug(parser)
    args = parser.parse_intermixed_args(config_first(argv))
    register_all()
    audit = _audit(args.what, args.images)
    print(audit.table())
    for level, text in audit.messages:
        print(f"{level}: {text}")
    if not audit.messages:
        print("No defects.")
    return int(bool(audit.refused))


def _audit(what: Sequence[str], images: str | None) -> Audit:
    known = DatasetCatalog.list()
    if not all(x in known or x.endswith(".json") for x in what):
        cfg = load_config(what[0], what[1:])
        if "device" in cfg.train:
            cfg.train.device = "cpu"  # the data can be audited on a machine without a GPU
        check_config(cfg)
        return audit_config(cfg)
    names = []
    for x in what:
        if x not in known and not os.path.isfile(x):
            raise FileNotFoundError(
                f"{x}: expected a COCO file or a registered dataset, found none. A path is "
                f"relative to the current folder."
            )
        if x not in known and images:
            # Under a name of its own, the file is audited with its images.
            register_coco_instances(x, {}, os.path.abspath(x), images)
        names.append(x)
    return audit_sets(dict.fromkeys(names, "train"))
