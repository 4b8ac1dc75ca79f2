"""DeepPCB: six kinds of defects on photographs of circuit boards.

S. Tang et al., "Online PCB Defect Detector On A New PCB Defect Dataset", arXiv:1902.06197. The
lists trainval.txt and test.txt name an image and the file of its boxes in each line. The images
are called N_test.jpg where the lists say N.jpg. A line of a file of boxes is x1 y1 x2 y2 type, in
pixels from 0.
"""

from __future__ import annotations

from pathlib import Path

from .coco import Box, Dataset, Sample, build_dataset
from .text import Problems, read_lines_of, read_number

__all__ = ["convert_deep_pcb"]

TYPES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")  # types 1 to 6


def convert_deep_pcb(
    root: str | Path, *, val_every: int | None = None, clip: bool = False
) -> Dataset:
    """Convert DeepPCB, with its official lists as the splits "train" and "test".

    Images are in the order of the lists. The defect-free templates are left out.

    Args:
        root: the folder of the repository, or PCBData in it.
        val_every: move the lines n, 2n, ... of trainval.txt to a split "val".
        clip: cut boxes at the border of their image, however far they go beyond it.

    Raises:
        ValueError: there is an error in a file, or an image is listed twice; see `build_dataset`.
    """
    if val_every is not None and val_every < 2:
        raise ValueError(f"val_every: expected 2 or more, found {val_every}")
    root = Path(root)
    folder = root / "PCBData" if (root / "PCBData").is_dir() else root
    problems = Problems()
    listed: set[str] = set()
    trainval = _read_list(folder, "trainval.txt", listed, problems)
    splits = {"train": trainval}
    if val_every:
        splits["train"] = [s for i, s in enumerate(trainval, start=1) if i % val_every]
        splits["val"] = trainval[val_every - 1 :: val_every]
    splits["test"] = _read_list(folder, "test.txt", listed, problems)
    for name, samples in splits.items():
        if not samples and not problems:
            raise ValueError(f"split {name}: expected images in the lists of {folder}, found none")
    return build_dataset(splits, _read, TYPES, clip=clip, problems=problems)


def _read_list(folder: Path, name: str, listed: set[str], problems: Problems) -> list[Sample]:
    """Read a list, without blank lines. Its images are added to `listed`."""
    if not (folder / name).is_file():
        raise ValueError(
            f"{folder / name}: expected a file, found none. Give the folder that has trainval.txt."
        )

    def sample(fields: list[str], line: int) -> Sample:
        stem, dot, suffix = fields[0].rpartition(".")
        image = f"{stem}_test{dot}{suffix}"
        if image in listed:
            raise ValueError(f"expected each image once, found {fields[0]} again")
        listed.add(image)
        return Sample(image, folder / image, folder / fields[1])

    return read_lines_of("image boxes", folder / name, problems, sample)


def _read(file: Path, size: tuple[int, int], problems: Problems) -> list[Box]:
    return read_lines_of("x1 y1 x2 y2 type", file, problems, _box)


def _box(fields: list[str], line: int) -> Box:
    x0, y0, x1, y1, kind = (read_number(text) for text in fields)
    if kind not in range(1, len(TYPES) + 1):
        raise ValueError(f"expected a type from 1 to {len(TYPES)}, found {fields[4]}")
    return Box(TYPES[int(kind) - 1], (x0, y0, x1, y1), line)
