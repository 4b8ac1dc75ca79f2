"""Label a folder in several processes, started by torchrun or by Detectron2's launch.

python -m tests.pseudo.ranks IMAGES CACHE PROCESSES
"""

import argparse
import os
import sys
import time
from pathlib import Path

from d2kd.data.manifest import Manifest
from d2kd.launch import launch
from d2kd.pseudo.label import label_images, open_cache
from d2kd.pseudo.teachers import LabelTeacher
from tests.pseudo import pictures

UNIT_SIZE = 5


class Slow(LabelTeacher):
    seconds = 0.0

    def __call__(self, images, pixels):
        time.sleep(self.seconds)
        return super().__call__(images, pixels)


def parts(images: Path, cache: Path, seconds: float = 0.0):
    """The manifest, teacher and cache that `label_images` takes.

    Args:
        seconds: the teacher waits this long before each batch, so that a test has time to kill it.
    """
    manifest = Manifest.from_folder(images)
    teacher = Slow(
        pictures.detector(), None, ["a", "b", "c"], min_size_test=96, score_floor=0.3, batch_size=2
    )
    teacher.seconds = seconds
    return manifest, teacher, open_cache(cache, manifest, teacher, UNIT_SIZE, "cpu")


def main(args) -> None:
    label_images(*parts(args.images, args.cache), num_workers=1, max_rejected=0.1)


if __name__ == "__main__":
    images, cache, processes = sys.argv[1:]
    machines = dict(num_machines=1, machine_rank=0, dist_url="auto")
    args = dict(images=Path(images), cache=Path(cache), num_gpus=int(processes), **machines)
    launch(main, argparse.Namespace(**args))
    os._exit(0)  # as in tests/ranks.py: gloo may abort while the interpreter shuts down
