"""Run teachers over images, unit by unit, in any number of processes, and cache what they find."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import detectron2
import detectron2.data.transforms as T
import numpy as np
import torch
import torchvision
from detectron2.data.detection_utils import SizeMismatchError, read_image
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..data.audit.images import read_header
from ..data.manifest import Image, Manifest
from ..data.workers import ignore_interrupts
from ..matching import Detections
from ..threads import available_cpus
from .cache import Claims, RawCache, Unit
from .teachers import LabelTeacher

__all__ = ["label_images", "open_cache", "teacher_speed"]

logger = logging.getLogger(__name__)

# An OSError with one of these numbers means that the file is unusable, and the image is rejected.
# Decoders set no number. Any other number means trouble of the disk or the machine, which stops the
# run: the same file may be readable later.
ABOUT_THE_FILE = (None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP)
WAITING = 8  # at most this many batches of images wait for other images of their padded size


def open_cache(
    root: str | Path, manifest: Manifest, teacher: LabelTeacher, unit_size: int, device: str
) -> RawCache:
    """Open the cache below `root` for the predictions of this teacher in these images.

    The key of the cache covers the images, the unit size and `LabelTeacher.settings`. Device and
    library versions are noted with each unit but are not in the key: they may change the last digit
    of a prediction, which is no reason to label everything again.
    """
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, detectron2, np)}
    settings = dict(
        schema=1, images=manifest.digest, unit_size=unit_size, teacher=teacher.settings()
    )
    return RawCache(root, settings, dict(versions, device=torch.device(device).type))


def label_images(
    manifest: Manifest,
    teacher: LabelTeacher,
    cache: RawCache,
    *,
    max_rejected: float = 0.01,
    num_workers: int = 4,
    device: torch.device | str = "cpu",
    name: str = "labels",
) -> dict[str, float]:
    """Label the units that are missing in the cache, together with all other processes that do so.

    Each process claims a unit when it is ready for one (`Claims`). The function returns when all
    units are done, including the units of other processes. The content of a unit does not depend on
    the process that labeled it: a batch contains images of one unit and of the same padded size, in
    the order of the manifest.

    Args:
        manifest, teacher, cache: as given to `open_cache`.
        max_rejected: share of the images that may be unreadable, in [0, 1].
        num_workers: number of processes that read and resize images, for each labeling process. All
            labeling processes of this machine together start at most one for each CPU.
        device: where the teacher runs.
        name: title of the progress bar, which the main process shows.

    Returns:
        "images", the number of images that this process labeled, and "images_per_second".

    Raises:
        ValueError: too many images cannot be read.
    """
    units = manifest.units(cache.settings["unit_size"])
    rejected = _count_rejected(manifest, cache, len(units), max_rejected)
    missing = cache.missing(len(units))
    # Processes start at different units, so that they rarely try to claim the same one.
    rank, world = comm.get_rank(), comm.get_world_size()
    missing = [unit for first in range(world) for unit in missing[(first + rank) % world :: world]]
    num_workers = _affordable(num_workers)
    teacher.to(device)
    images, start = 0, time.perf_counter()
    look_again = start
    bar = _bar(name, sum(len(units[u]) for u in missing))
    with cache.claims() as claims, bar, _one_thread(device):
        while missing:
            claimed = _claimed(units, missing, cache, claims)
            loaded = _load(claimed, teacher, num_workers)
            for unit, items in groupby(loaded, key=lambda item: item[0]):
                content = _label_unit((item[1:] for item in items), teacher, bar)
                cache.write(unit, content)
                claims.release(unit)
                images += len(units[unit])
                rejected += len(content.rejected)
                _check_rejected(manifest, cache, rejected, max_rejected)
                if time.perf_counter() > look_again:  # how far the other processes are
                    done = sum(len(units[u]) for u in missing if cache.marked(u))
                    bar.update(max(done - bar.n, 0))
                    look_again = time.perf_counter() + 10
            missing = [unit for unit in missing if not cache.done(unit)]
            if missing:
                time.sleep(0.5)  # other processes work on these
    speed = images / (time.perf_counter() - start)
    _count_rejected(manifest, cache, len(units), max_rejected)
    return dict(images=images, images_per_second=speed)


def _affordable(num_workers: int) -> int:
    """At most this many workers for each process, so that all together have a CPU each."""
    share = max(available_cpus() // comm.get_local_size(), 1)
    if num_workers > share:
        logger.info("num_workers=%d is more than the CPUs: %d are used", num_workers, share)
    return min(num_workers, share)


def teacher_speed(
    manifest: Manifest, teacher: LabelTeacher, device: torch.device | str = "cpu"
) -> float:
    """Images per second of a teacher without reading and writing, to compare with `label_images`.

    Args:
        manifest: a few images. They are read into memory before the clock starts.
    """
    loaded = (item[1:] for item in _load(iter([(0, image) for image in manifest]), teacher, 0))
    usable = ((image, pixels) for image, pixels in loaded if not isinstance(pixels, str))
    batches = list(_batches(usable, teacher.batch_size, teacher.divisibility))
    teacher.to(device)
    with _one_thread(device):
        start = time.perf_counter()
        for batch in batches:
            images, pixels = zip(*batch, strict=True)
            teacher(images, pixels)  # returns when the detections are on the CPU
        seconds = time.perf_counter() - start
    return sum(map(len, batches)) / seconds


def _claimed(
    units: Sequence[tuple[Image, ...]], missing: Sequence[int], cache: RawCache, claims: Claims
) -> Iterator[tuple[int, Image]]:
    """The images of the units that this process can claim. A unit is claimed when the data loader
    asks for its first image."""
    for unit in missing:
        if not claims.take(unit):
            continue
        if cache.done(unit):  # another process has finished it in the meantime
            claims.release(unit)
            continue
        for image in units[unit]:
            yield unit, image


def _load(
    claimed: Iterator[tuple[int, Image]], teacher: LabelTeacher, num_workers: int
) -> Iterable[tuple[int, Image, torch.Tensor | str]]:
    """Read images: (unit, image, pixels), or (unit, image, reason) if an image is unreadable."""
    first = next(claimed, None)
    if first is None:
        return ()
    # The sampler gives the images themselves as indices. Workers then need no copy of the manifest.
    return DataLoader(
        _Images(teacher),
        sampler=chain([first], claimed),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_identity,
        worker_init_fn=ignore_interrupts,
    )


class _Images(Dataset):
    """Reads and resizes images as Detectron2 does at test time. Its indices are (unit, image)."""

    def __init__(self, teacher: LabelTeacher):
        self.input_format = teacher.input_format
        self.resize = T.ResizeShortestEdge(teacher.min_size_test, teacher.max_size_test)

    def __getitem__(self, item: tuple[int, Image]) -> tuple[int, Image, torch.Tensor | str]:
        unit, image = item
        try:
            header = read_header(image.file_name)
            if header.problem == "depth":  # Pillow would cut the values off at 255
                raise ValueError(f"expected 8 bits a channel, found {header.detail}")
            pixels = read_image(image.file_name, self.input_format)
            height, width = pixels.shape[:2]
            if image.height and (image.height, image.width) != (height, width):
                raise SizeMismatchError(
                    f"it is {width} by {height} pixels, the dataset says {image.width} by "
                    f"{image.height}"
                )
        except Exception as e:  # decoders raise all kinds of errors on a damaged file
            if isinstance(e, OSError) and e.errno not in ABOUT_THE_FILE:
                raise
            # The reason must be the same in each run: without folders and memory addresses.
            reason = str(e).replace(image.file_name, Path(image.file_name).name)
            reason = re.sub(r" at 0x[0-9a-f]+", "", reason)
            return unit, image, f"{type(e).__name__}: {reason}"
        pixels = self.resize.get_transform(pixels).apply_image(pixels)
        pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return unit, replace(image, height=height, width=width), pixels


def _identity(item: Any) -> Any:
    return item


def _label_unit(
    loaded: Iterable[tuple[Image, torch.Tensor | str]], teacher: LabelTeacher, bar: Any
) -> Unit:
    detections: dict[int, Detections] = {}
    sizes: dict[int, tuple[int, int]] = {}
    rejected: dict[int, str] = {}

    def usable() -> Iterator[tuple[Image, torch.Tensor]]:
        for image, pixels in loaded:
            if isinstance(pixels, str):
                logger.warning("%s is left out: %s", image.file_name, pixels)
                rejected[image.image_id] = pixels
                bar.update(1)
            else:
                sizes[image.image_id] = image.height, image.width
                yield image, pixels

    for batch in _batches(usable(), teacher.batch_size, teacher.divisibility):
        images, pixels = zip(*batch, strict=True)
        for image, found in zip(images, teacher(images, pixels), strict=True):
            detections[image.image_id] = found
        bar.update(len(images))
    return Unit(sizes, detections, rejected)


def _batches(
    images: Iterable[tuple[Image, torch.Tensor]], size: int, divisibility: int
) -> Iterator[list[tuple[Image, torch.Tensor]]]:
    """Batches of images of the same padded size. No image is then padded more than it would be
    alone, and its predictions do not depend on the other images of its batch."""
    waiting: dict[tuple[int, ...], list] = {}
    for item in images:
        key = tuple(-(-n // divisibility) for n in item[1].shape[1:])
        waiting.setdefault(key, []).append(item)
        if len(waiting[key]) == size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= WAITING * size:
            yield waiting.pop(max(waiting, key=lambda k: len(waiting[k])))
    yield from waiting.values()


def _count_rejected(manifest: Manifest, cache: RawCache, units: int, share: float) -> int:
    """Number of unreadable images in all units so far; see `_check_rejected`."""
    marked = (unit for unit in range(units) if cache.marked(unit))
    count = len(manifest.rejected) + sum(cache.counts(unit)["rejected"] for unit in marked)
    _check_rejected(manifest, cache, count, share)
    return count


def _check_rejected(manifest: Manifest, cache: RawCache, count: int, share: float) -> None:
    total = len(manifest) + len(manifest.rejected)
    if count > share * total:
        raise ValueError(
            f"{manifest.name}: expected at most {share:.2%} of {total} images to be unreadable "
            f"(labels.max_rejected), found {count} ({': '.join(_example(manifest, cache))}). Raise "
            f"labels.max_rejected to continue without these images. If you repair or remove files "
            f"instead, all images are labeled again, because they are then another set."
        )


def _example(manifest: Manifest, cache: RawCache) -> tuple[str, str]:
    """(path, reason) of an unreadable image, for the message."""
    if manifest.rejected:
        return manifest.rejected[0]
    for unit, images in enumerate(manifest.units(cache.settings["unit_size"])):
        if cache.marked(unit) and cache.counts(unit)["rejected"]:
            rejected = cache.read(unit).rejected
            return next(
                (i.file_name, rejected[i.image_id]) for i in images if i.image_id in rejected
            )
    return "some", "see the log"


@contextlib.contextmanager
def _one_thread(device: torch.device | str) -> Iterator[None]:
    """On a CPU, run the teacher in one thread: the results must not depend on the number."""
    threads = torch.get_num_threads()
    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _bar(name: str, images: int) -> Any:
    """A progress bar over images, which only the main process shows."""
    from tqdm import tqdm

    return tqdm(
        desc=name,
        total=images,
        unit="image",
        disable=not comm.is_main_process(),
        mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file keeps every line
    )
