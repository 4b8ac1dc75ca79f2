"""Look at the headers of image files: size, orientation, depth, and whether the file is whole."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from ..images import is_turned
from . import cache
from .kinds import Defect

__all__ = ["Header", "find_image_defects", "read_header", "read_headers"]

TAIL = 16384  # bytes at the end of a file in which its end marker is looked for
DARK = 16  # the upper 8 of 16 bits, where only 12 bits are used
THREADS = 16  # they mostly wait for the disk
BATCH = 256
SHOW_PROGRESS = 5000  # files


class Header(NamedTuple):
    """What an image file's header says.

    Attributes:
        width, height: in pixels, after the EXIF orientation is applied; 0 if it cannot be read.
        problem: "" or one of the kinds "missing", "damaged" and "depth".
        detail: says more about the problem.
    """

    width: int
    height: int
    problem: str = ""
    detail: str = ""


def read_header(path: str) -> Header:
    """Read the header of one file. Pixels are decoded only where the header raises doubts.

    Doubts are an end marker that is missing, and more than 8 bits a channel: such images are
    usable as they are if no value exceeds 255.
    """
    try:
        with open(path, "rb") as f, Image.open(f) as image:
            width, height = image.size
            whole, tail = _look_at_end(f, image.format)
            # Pillow decodes a whole PNG to look for EXIF data behind the pixels.
            described = image.format != "PNG" or "exif" in image.info or b"eXIf" in tail
            if described and is_turned(image):
                width, height = height, width
            if not whole:
                image.load()
            if image.mode == "F" or image.mode.startswith("I"):
                low, high = (float(x) for x in image.getextrema())  # type: ignore[arg-type]
                # getextrema compares with NaN, and so does not see one behind the first pixel.
                if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
                    low = high = float("nan")
                usual = low >= 0 and high <= 255 and (image.mode != "F" or high > 1)
                if not usual and (low, high) != (0, 0):
                    detail = f"mode {image.mode}, values from {low:g} to {high:g}"
                    return Header(width, height, "depth", detail)
            elif _has_16_bit_colors(image):
                # Pillow keeps the upper 8 of the 16 bits of each color: fine for the full range,
                # but nearly black for the 12 bits of a camera.
                image.load()
                bands = np.asarray(image.convert("RGB"))
                if bands.max() < DARK:
                    detail = f"16 bits a color, of which the upper 8 are at most {bands.max()}"
                    return Header(width, height, "depth", detail)
        return Header(width, height)
    except FileNotFoundError:
        return Header(0, 0, "missing")
    except Exception as error:  # decoders raise all kinds of errors on a damaged file
        reason = str(error).split(" <_io")[0].replace(path, os.path.basename(path))
        return Header(0, 0, "damaged", f"{type(error).__name__}: {reason}")


def _has_16_bit_colors(image: Image.Image) -> bool:
    """Whether an image of Pillow's mode RGB or similar has 16 bits a color in its file."""
    tiles = getattr(image, "tile", None)  # of images that are read from a file
    if not tiles:  # the pixels are decoded already
        return False
    # Arguments of the decoder: "RGB;16B" for PNG, ("RGB;16N", ...) for TIFF.
    arguments = tiles[0][3]
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and ";16" in raw


def _look_at_end(f: BinaryIO, kind: str | None) -> tuple[bool, bytes]:
    """Whether a file has its end marker, or its whole length, and the end of the file.

    A format that has neither is taken for whole.
    """
    tail = b""
    size = f.seek(0, os.SEEK_END)
    if kind in ("PNG", "JPEG"):
        f.seek(max(size - TAIL, 0))
        tail = f.read()
        found = (b"IEND" if kind == "PNG" else b"\xff\xd9") in tail
    elif kind in ("BMP", "WEBP"):
        f.seek(2 if kind == "BMP" else 4)
        length = struct.unpack("<I", f.read(4))[0]
        found = size >= length + (0 if kind == "BMP" else 8)
    else:
        found = True
    f.seek(0)
    return found, tail


def read_headers(files: Sequence[str], name: str = "images") -> list[Header]:
    """Read the headers of many local files, in threads.

    Headers are cached by path, size and time of change, see `cache`. A file that has a problem is
    read again each time.

    Args:
        files: paths.
        name: for the progress bar.
    """
    if not files:
        return []
    root = os.path.commonpath({os.path.dirname(os.path.abspath(f)) for f in files})
    known = cache.load("headers", root) or {}
    todo: list[int] = []
    headers: list[Header | None] = []
    with ThreadPoolExecutor(THREADS) as pool:
        stamps = _map(pool, _stamp, files, "")
        for i, (file, stamp) in enumerate(zip(files, stamps, strict=True)):
            entry = known.get(file)
            if stamp is not None and entry is not None and entry[:2] == stamp:
                headers.append(Header(*entry[2:]))
            else:
                headers.append(None)
                todo.append(i)
        read = _map(pool, read_header, [files[i] for i in todo], name)
    for i, header in zip(todo, read, strict=True):
        headers[i] = header
        if not header.problem and stamps[i] is not None:
            known[files[i]] = [*stamps[i], header.width, header.height]
    if todo:
        cache.store("headers", root, known)
    return [h for h in headers if h is not None]


def _stamp(path: str) -> list[int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _map(pool: ThreadPoolExecutor, function: Callable, items: Sequence[str], name: str) -> list:
    """`function` of each item, in batches: a future for each would cost more than a header."""
    batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    results = pool.map(lambda batch: [function(x) for x in batch], batches)
    if not name or len(items) < SHOW_PROGRESS:
        return [x for batch in results for x in batch]
    from tqdm import tqdm

    options: dict[str, Any] = dict(desc=f"{name}: headers", total=len(items), unit="image")
    done = []
    with tqdm(mininterval=0.1 if sys.stderr.isatty() else 30, leave=False, **options) as bar:
        for batch in results:
            done += batch
            bar.update(len(batch))
    return done


def find_image_defects(
    files: Sequence[str], sizes: np.ndarray, name: str = "images"
) -> list[Defect]:
    """Count images that are missing, damaged, of more than 8 bits, or of another size.

    Args:
        files: (N,) paths; "" for images that are not in files.
        sizes: (N, 2) width and height that the annotations say; 0 where they do not.
        name: of the set.
    """
    expected: dict[str, tuple[int, int]] = {}
    remote = [f for f in files if "://" in f]
    for file, size in zip(files, sizes.tolist(), strict=True):
        if file and "://" not in file:
            expected.setdefault(file, (size[0], size[1]))
    paths = list(expected)
    found: dict[str, list[str]] = {}
    for path, header in zip(paths, read_headers(paths, name), strict=True):
        size = expected[path]
        if header.problem:
            detail = f" ({header.detail})" if header.detail else ""
            found.setdefault(header.problem, []).append(f"{path}{detail}")
        elif all(size) and size != header[:2]:
            text = f"{path}: {header.width} x {header.height}, annotated as {size[0]} x {size[1]}"
            found.setdefault("size", []).append(text)
    defects = [Defect(k, len(v), len(files), v[0]) for k, v in sorted(found.items())]
    if remote:
        defects.append(Defect("remote", len(remote), len(files), remote[0]))
    return defects
