"""Teachers label images, unit by unit, in any number of processes."""

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

import detectron2
import detectron2.data.transforms as T
import numpy as np
import torch
import torchvision
from detectron2.data.detection_utils import SizeMismatchError, read_image
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..data.manifest import Image, Manifest
from .cache import Claims, RawCache, Unit
from .teachers import LabelTeacher

__all__ = ["label", "open_cache", "speed_alone"]

logger = logging.getLogger(__name__)

# Errors of the system that say something of a file; decoders set no number.
ABOUT_THE_FILE = (None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP)
WAITING = 8  # batches of images that may wait for others of their size


def open_cache(
    root: str | Path, manifest: Manifest, teacher: LabelTeacher, unit_size: int, device: str
) -> RawCache:
    """The cache of what this teacher finds in these images, below `root`.

    Its key covers the images, the units and `LabelTeacher.settings`. Device and versions are noted
    with each unit: their numbers may differ in the last digit, which is no reason to begin anew.
    """
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, detectron2, np)}
    settings = dict(
        schema=1, images=manifest.digest, unit_size=unit_size, teacher=teacher.settings()
    )
    return RawCache(root, settings, dict(versions, device=torch.device(device).type))


def label(
    manifest: Manifest,
    teacher: LabelTeacher,
    cache: RawCache,
    *,
    max_rejected: float = 0.01,
    num_workers: int = 4,
    device: torch.device | str = "cpu",
    name: str = "labels",
) -> dict[str, float]:
    """Label what is missing in the cache, together with all other processes that do the same.

    Processes take units as they get on, by `Claims`. The last one to return is as late as the
    last unit. What a unit holds does not depend on who labelled it: its batches hold images of
    the same padded size, in the order of the manifest, from this unit only.

    Args:
        manifest, teacher, cache: as given to `open_cache`.
        max_rejected: share of the images that may be unreadable.
        num_workers: processes that read and resize images, for each process that labels.
        device: where the teacher runs.
        name: for the progress bar, which the main process shows.

    Returns:
        images labelled by this process, and images in a second.

    Raises:
        ValueError: too many images cannot be read.
    """
    units = manifest.units(cache.settings["unit_size"])
    rejected = _count_rejected(manifest, cache, len(units), max_rejected)
    missing = cache.missing(len(units))
    # Each process begins elsewhere, so that they seldom try the same unit.
    rank, world = comm.get_rank(), comm.get_world_size()
    missing = [unit for first in range(world) for unit in missing[(first + rank) % world :: world]]
    teacher.to(device)
    images, start = 0, time.perf_counter()
    look_again = start
    bar = _bar(name, sum(len(units[u]) for u in missing))
    with cache.claims() as claims, bar, _one_thread(device):
        while missing:
            claimed = _claimed(units, missing, cache, claims)
            for unit, read in groupby(_load(claimed, teacher, num_workers), key=lambda x: x[0]):
                content = _label_unit((x[1:] for x in read), teacher, bar)
                cache.write(unit, content)
                claims.give_back(unit)
                images += len(units[unit])
                rejected += len(content.rejected)
                _check_rejected(manifest, cache, rejected, max_rejected)
                if time.perf_counter() > look_again:  # at what others did
                    done = sum(len(units[u]) for u in missing if cache.marked(u))
                    bar.update(max(done - bar.n, 0))
                    look_again = time.perf_counter() + 10
            missing = [unit for unit in missing if not cache.done(unit)]
            if missing:
                time.sleep(0.5)  # others are at work on these
    speed = images / (time.perf_counter() - start)
    _count_rejected(manifest, cache, len(units), max_rejected)
    return dict(images=images, images_per_second=speed)


def speed_alone(
    manifest: Manifest, teacher: LabelTeacher, device: torch.device | str = "cpu"
) -> float:
    """Images in a second of a teacher that neither reads nor writes, for comparison with `label`.

    Args:
        manifest: few images, which are in memory before the clock starts.
    """
    read = (x[1:] for x in _load(iter([(0, image) for image in manifest]), teacher, 0))
    usable = ((image, pixels) for image, pixels in read if not isinstance(pixels, str))
    batches = list(_batches(usable, teacher.batch_size, teacher.divisibility))
    teacher.to(device)
    with _one_thread(device):
        start = time.perf_counter()
        for batch in batches:
            teacher(*zip(*batch, strict=True))  # detections are on the CPU when it returns
        seconds = time.perf_counter() - start
    return sum(map(len, batches)) / seconds


def _claimed(
    units: Sequence[tuple[Image, ...]], missing: Sequence[int], cache: RawCache, claims: Claims
) -> Iterator[tuple[int, Image]]:
    """The images of the units that nobody else has, claimed when a loader gets to them."""
    for unit in missing:
        if not claims.take(unit):
            continue
        if cache.done(unit):  # by another process, meanwhile
            claims.give_back(unit)
            continue
        for image in units[unit]:
            yield unit, image


def _load(
    claimed: Iterator[tuple[int, Image]], teacher: LabelTeacher, num_workers: int
) -> Iterable[tuple[int, Image, torch.Tensor | str]]:
    first = next(claimed, None)
    if first is None:
        return ()
    # An image travels as its own index, so that workers need no copy of the manifest.
    return DataLoader(
        _Images(teacher),
        sampler=chain([first], claimed),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
    )


class _Images(Dataset):
    """Reads and resizes as Detectron2 does at test time."""

    def __init__(self, teacher: LabelTeacher):
        self.input_format = teacher.input_format
        self.resize = T.ResizeShortestEdge(teacher.min_size_test, teacher.max_size_test)

    def __getitem__(self, item: tuple[int, Image]) -> tuple[int, Image, torch.Tensor | str]:
        unit, image = item
        try:
            pixels = read_image(image.file_name, self.input_format)
            height, width = pixels.shape[:2]
            if image.height and (image.height, image.width) != (height, width):
                raise SizeMismatchError(
                    f"it is {width} by {height} pixels, the dataset says {image.width} by "
                    f"{image.height}"
                )
        except Exception as e:  # what a decoder raises on a damaged file is not specified
            if isinstance(e, OSError) and e.errno not in ABOUT_THE_FILE:
                raise  # the disk or the machine: what is read another time may be whole
            # The same words in each run: neither where the data lie nor where an object lies.
            words = str(e).replace(image.file_name, Path(image.file_name).name)
            words = re.sub(r" at 0x[0-9a-f]+", "", words)
            return unit, image, f"{type(e).__name__}: {words}"
        pixels = self.resize.get_transform(pixels).apply_image(pixels)
        pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return unit, replace(image, height=height, width=width), pixels


def _as_it_is(item: tuple) -> tuple:
    return item


def _label_unit(
    read: Iterable[tuple[Image, torch.Tensor | str]], teacher: LabelTeacher, bar
) -> Unit:
    found, sizes, rejected = {}, {}, {}

    def usable() -> Iterator[tuple[Image, torch.Tensor]]:
        for image, pixels in read:
            if isinstance(pixels, str):
                logger.warning("%s is left out: %s", image.file_name, pixels)
                rejected[image.image_id] = pixels
                bar.update(1)
            else:
                sizes[image.image_id] = image.height, image.width
                yield image, pixels

    for batch in _batches(usable(), teacher.batch_size, teacher.divisibility):
        images, pixels = zip(*batch, strict=True)
        for image, boxes in zip(images, teacher(images, pixels), strict=True):
            found[image.image_id] = boxes
        bar.update(len(images))
    return Unit(sizes, found, rejected)


def _batches(
    images: Iterable[tuple[Image, torch.Tensor]], size: int, divisibility: int
) -> Iterator[list[tuple[Image, torch.Tensor]]]:
    """Batches of images that padding makes equally large, so that none is padded for another."""
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
            f"it to go on from here without them. Mended files are other images, as is a set "
            f"without some: then all are labelled anew."
        )


def _example(manifest: Manifest, cache: RawCache) -> tuple[str, str]:
    """(path, reason) of an unreadable image."""
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
    threads = torch.get_num_threads()
    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _bar(name: str, images: int):
    from tqdm import tqdm

    return tqdm(
        desc=name,
        total=images,
        unit="image",
        disable=not comm.is_main_process(),
        mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file keeps every line
    )
