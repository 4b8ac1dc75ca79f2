"""Find images and their labels by name, and divide them into splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..images import SUFFIXES
from .coco import Sample
from .text import Problems, read_numbered_lines

__all__ = ["Pair", "Split", "divide", "find_pairs"]


@dataclass(frozen=True)
class Split:
    """One split, as the user gives it.

    Attributes:
        name: its name: letters, digits, "_", "-" and "."; not "annotations".
        rule: "A-B" for the images whose number is in A..B, where the number is the last integer in
            the name of the file; or else the path of a list of images, one a line, each as a path
            below the folder of the images, with or without its suffix.
    """

    name: str
    rule: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name) or self.name == "annotations" or not self.rule:
            raise ValueError(
                f"split {self.name!r}: expected NAME=FILE or NAME=A-B with a NAME of letters, "
                f"digits, '_', '-' and '.' that is not 'annotations', found "
                f"{f'{self.name}={self.rule}'!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Split:
        """Read NAME=FILE or NAME=A-B."""
        name, _, rule = text.partition("=")
        return cls(name, rule)


@dataclass(frozen=True)
class Pair:
    """An image and a file of labels of the same name; one of them may be missing.

    Attributes:
        key: path below the folder of the images, without suffix, with slashes.
    """

    key: str
    image: Path | None
    labels: Path | None

    @property
    def sort_key(self) -> str:
        return self.key + (self.image.suffix if self.image else "")

    def sample(self) -> Sample:
        assert self.image is not None
        return Sample(self.sort_key, self.image, self.labels)


def find_pairs(images: Path, labels: Path, suffix: str) -> list[Pair]:
    """Images and labels below two folders, in the order of the images' file names.

    Args:
        images: folder of the images; folders in it are searched too.
        labels: folder of the labels, with the same folders in it.
        suffix: of the files of labels.

    Raises:
        ValueError: a folder is missing or has no such file, or two images have the same name.
    """
    by_key: dict[str, Path] = {}
    for key, file in _walk(images, SUFFIXES):
        if key in by_key:
            raise ValueError(
                f"{file}: expected one image for the labels {key}{suffix}, found {by_key[key]} too"
            )
        by_key[key] = file
    labels_by_key = dict(_walk(labels, (suffix,)))
    keys = by_key.keys() | labels_by_key.keys()
    pairs = [Pair(key, by_key.get(key), labels_by_key.get(key)) for key in keys]
    return sorted(pairs, key=lambda pair: pair.sort_key)


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(path without suffix, file) of the files below a folder that have one of the suffixes."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            file = Path(root, name)
            if file.suffix.lower() in suffixes and not name.startswith("."):
                key = file.relative_to(folder).as_posix()
                found.append((key[: -len(file.suffix)], file))
    if not found:
        state = "none" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: expected files *{', *'.join(suffixes)}, found {state}")
    return sorted(found)


def divide(
    pairs: Sequence[Pair], splits: Sequence[Split], problems: Problems
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Divide images into splits.

    Args:
        pairs: in the order that they keep.
        splits: none for one split "train" of all images.
        problems: an image without a file, or named twice, is added here.

    Returns:
        name -> its pairs that have an image, and sentences for the user.

    Raises:
        ValueError: two splits overlap or have the same name, a split is empty, or a list names
            what is not there.
    """
    chosen: dict[str, set[str]] = {}
    for split in splits:
        if split.name in chosen:
            raise ValueError(f"split {split.name}: expected it once, found it twice")
        chosen[split.name] = _keys(split, pairs, problems)
    problems.check()
    if not splits:
        chosen["train"] = {pair.key for pair in pairs}
    owner: dict[str, str] = {}
    for name, keys in chosen.items():
        for key in sorted(keys):
            if key in owner:
                raise ValueError(
                    f"splits {owner[key]} and {name}: expected no image in both, found {key!r}"
                )
            owner[key] = name
    divided: dict[str, list[Pair]] = {name: [] for name in chosen}
    left = 0
    for pair in pairs:
        if pair.key not in owner:
            left += pair.image is not None
        elif pair.image is None:
            problems.add(pair.labels or pair.key, None, f"expected an image {pair.key}, found none")
        else:
            divided[owner[pair.key]].append(pair)
    return divided, [f"{left} images are in no split and were left out"] if left else []


def _keys(split: Split, pairs: Sequence[Pair], problems: Problems) -> set[str]:
    """Keys of the images of a split."""
    if limits := re.fullmatch(r"(\d+)-(\d+)", split.rule):
        first, last = int(limits[1]), int(limits[2])
        keys = {pair.key for pair in pairs if first <= _number(pair.key) <= last}
        origin = f"images with numbers from {first} to {last}"
    else:
        keys = _listed(Path(split.rule).expanduser(), pairs, problems)
        origin = f"names of images in {split.rule}"
    if not keys and not problems:
        raise ValueError(f"split {split.name}: expected {origin}, found none")
    return keys


def _number(key: str) -> int:
    """The last integer in the name of a file; -1 if there is none."""
    digits = re.findall(r"\d+", key.rpartition("/")[2])
    return int(digits[-1]) if digits else -1


def _listed(file: Path, pairs: Iterable[Pair], problems: Problems) -> set[str]:
    names = {pair.sort_key: pair.key for pair in pairs} | {pair.key: pair.key for pair in pairs}
    try:
        lines = read_numbered_lines(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}. A split is NAME=FILE or NAME=A-B.") from error
    keys: set[str] = set()
    for number, line in lines:
        key = names.get(line.removeprefix("./"))
        if key is None:
            problems.add(file, number, f"expected the name of an image, found {line!r}")
        elif key in keys:
            problems.add(file, number, f"expected each image once, found {line!r} again")
        else:
            keys.add(key)
    return keys
