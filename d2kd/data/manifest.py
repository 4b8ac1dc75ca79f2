"""List the images that are to be labeled, in the same order in all processes and runs."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from detectron2.data import DatasetCatalog

from .images import SUFFIXES

__all__ = ["EMPTY", "MISSING", "Image", "Manifest"]

MISSING, EMPTY = "there is no such file", "the file is empty"  # reasons to reject an image


@dataclass(frozen=True, slots=True)  # there may be millions
class Image:
    """One image of a manifest.

    Attributes:
        image_id: a number that is unique in the manifest.
        file_name: path of the file.
        height, width: in pixels, after the EXIF orientation is applied; 0 if not known yet.
    """

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Manifest:
    """The images of a registered dataset or of a folder, without their annotations.

    No image is opened here. Folders and some datasets do not say how large their images are. Height
    and width are then 0 until an image is labeled; the raw cache stores the true size.

    Attributes:
        name: name of the dataset, or path of the folder.
        images: the images, in the order of their ids.
        rejected: (path, reason) of files that are missing or empty. Damaged files are found only
            when they are read.
        left_out: (suffix, number) of the files of a folder that are no images by their suffix.
            Hidden files are not counted.
        digest: sha256 of the id, the path below the common folder of all images, height, width and
            number of bytes of each file. It does not change when the whole folder is moved.
    """

    name: str
    images: tuple[Image, ...]
    rejected: tuple[tuple[str, str], ...]
    digest: str
    left_out: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_dataset(cls, name: str, field: str = "labels.images.dataset") -> Manifest:
        """The images of a dataset that is registered with Detectron2.

        The dataset's own ids are kept if they are whole numbers and all different. Otherwise the
        ids are 1, 2, ... in the order of the dataset's ids.

        Args:
            name: name of the dataset.
            field: name of the config field, for error messages.

        Raises:
            ValueError: the dataset is unknown, has no images, or has no file names.
        """
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"{field}: expected a dataset registered with Detectron2, found {name!r}. Register "
                f"it in the config, or set labels.images.folder to a folder of images."
            )
        records = DatasetCatalog.get(name)
        if any("file_name" not in r or "image_id" not in r for r in records):
            raise ValueError(
                f"dataset {name!r}: expected file_name and image_id for each image, found images "
                f"without."
            )
        try:
            ids = [int(r["image_id"]) for r in records]
        except ValueError:
            ids = []
        if len(set(ids)) < len(records):
            records = sorted(records, key=lambda r: (str(r["image_id"]), r["file_name"]))
            ids = list(range(1, len(records) + 1))
        images = [
            Image(i, r["file_name"], int(r.get("height", 0)), int(r.get("width", 0)))
            for i, r in zip(ids, records, strict=True)
        ]
        with ThreadPoolExecutor(16) as pool:  # a file server is slow to answer
            sizes = list(pool.map(_bytes, (image.file_name for image in images)))
        return cls._of(name, images, sizes)

    @classmethod
    def from_folder(cls, path: str | os.PathLike) -> Manifest:
        """All images below a folder, recognized by suffix. Their ids are 1, 2, ... in path order.

        Hidden files and folders are left out. Links to folders are not followed.

        Raises:
            ValueError: there is no such folder, or it has no images.
        """
        path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(path):
            raise ValueError(f"labels.images.folder: expected a folder, found none at {path}.")
        other: Counter[str] = Counter()
        files = sorted(_walk(path, other))
        images = [Image(i, file, 0, 0) for i, (file, _) in enumerate(files, start=1)]
        manifest = cls._of(path, images, [size for _, size in files], other)
        return replace(manifest, left_out=tuple(sorted(other.items())))

    @classmethod
    def _of(
        cls,
        name: str,
        images: Sequence[Image],
        sizes: Sequence[int],
        other: Mapping[str, int] | None = None,
    ) -> Manifest:
        """Build a manifest. `sizes` are the bytes of each file; -1 if there is no such file.
        `other` counts the files that are no images, for the message."""
        folders = {os.path.dirname(image.file_name) for image in images}
        alike = len({os.path.isabs(folder) for folder in folders}) == 1
        root = os.path.join(os.path.commonpath(folders), "") if alike else ""
        kept, rejected, digest = [], [], hashlib.sha256()
        for image, size in sorted(zip(images, sizes, strict=True), key=lambda x: x[0].image_id):
            file = image.file_name
            if size > 0:
                kept.append(image)
            else:
                reason = EMPTY if size == 0 else MISSING
                rejected.append((file, reason))
            line = (image.image_id, file.removeprefix(root), image.height, image.width, size)
            digest.update(f"{line}\n".encode(errors="surrogateescape"))
        if not kept:
            missing = f"{rejected[0][0]}: {rejected[0][1]}" if rejected else "none"
            if other:
                missing += f", and {', '.join(f'{n} {suffix}' for suffix, n in other.items())}"
            raise ValueError(
                f"{name}: expected images to label ({', '.join(SUFFIXES)} in a folder), found "
                f"{missing}."
            )
        return cls(name, tuple(kept), tuple(rejected), digest.hexdigest())

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    def units(self, size: int) -> list[tuple[Image, ...]]:
        """The images in units of `size` images. A unit is labeled and stored as one.

        Raises:
            ValueError: `size` is not positive.
        """
        if size < 1:
            raise ValueError(f"labels.unit_size: expected at least 1, found {size}")
        return [self.images[i : i + size] for i in range(0, len(self), size)]

    def sample(self, count: int, seed: int = 0) -> Manifest:
        """A manifest of `count` images, chosen at random; all images if there are not more."""
        if count >= len(self):
            return self
        chosen = np.sort(np.random.RandomState(seed).permutation(len(self))[:count]).tolist()
        digest = hashlib.sha256(f"{self.digest} {count} {seed}".encode()).hexdigest()
        return Manifest(self.name, tuple(self.images[i] for i in chosen), (), digest)


def _bytes(file: str) -> int:
    """Size of a file in bytes, -1 if it cannot be found."""
    try:
        return os.path.getsize(file)
    except OSError:
        return -1


def _walk(path: str, other: Counter[str]) -> Iterator[tuple[str, int]]:
    """(path, size in bytes) of the images below a folder. `other` counts the other suffixes."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, other)
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path, _bytes(entry.path) if entry.is_symlink() else entry.stat().st_size
            elif entry.is_file() or entry.is_symlink():
                other[os.path.splitext(entry.name)[1].lower() or "files without a suffix"] += 1
