"""Where labels come from and what is in them, as facts that can be checked later."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..files import sha256_of_file

__all__ = ["Counts", "digest", "dump", "environment", "verify"]


_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False)


def dump(content: Any) -> str:
    """The same JSON for the same content, on one line. NaN is refused."""
    return _ENCODER.encode(content)


def digest(content: Any) -> str:
    """sha256 of what JSON can hold."""
    return hashlib.sha256(dump(content).encode()).hexdigest()


class Counts:
    """Counts what is in a COCO file of labels, image by image."""

    def __init__(self, classes: Sequence[str]):
        self.classes = classes
        self.boxes, self.ignored = np.zeros((2, len(classes)), int)
        self.per_image: Counter[int] = Counter()

    def add(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        """Count one image, given all its annotations."""
        for a in annotations:
            (self.ignored if a["iscrowd"] else self.boxes)[a["category_id"] - 1] += 1
        self.per_image[sum(not a["iscrowd"] for a in annotations)] += 1

    def figures(self) -> dict[str, Any]:
        """All counts, as JSON."""
        counted = zip(self.classes, self.boxes.tolist(), self.ignored.tolist(), strict=True)
        return {
            "images": self.per_image.total(),
            "empty_images": self.per_image[0],
            "boxes": int(self.boxes.sum()),
            "ignore_regions": int(self.ignored.sum()),
            "classes": {name: {"boxes": n, "ignore_regions": m} for name, n, m in counted},
            "boxes_per_image": {str(n): k for n, k in sorted(self.per_image.items()) if k},
        }


def environment() -> dict[str, Any]:
    """Versions, commit, time and command: what may explain that two runs differ."""
    import torch

    versions = {"python": sys.version.split()[0], "cuda": torch.version.cuda}
    for name in ("d2kd", "detectron2", "numpy", "pycocotools", "torch", "torchvision"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # used from its folder
            versions[name] = getattr(sys.modules.get(name), "__version__", None)
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    written = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"versions": versions, "commit": commit, "written": written, "command": sys.argv}


def verify(path: str | Path) -> list[str]:
    """What differs between a COCO file of labels, its ``provenance.json`` and its parents.

    Counts are made again and digests are computed again. Nothing differs: an empty list.
    """
    path, differs = Path(path), []
    beside = path.with_name("provenance.json")
    try:
        text = beside.read_text()
        said = json.loads(text)
        if text != json.dumps(said, indent=1) + "\n":
            differs.append("provenance.json: not as it was written")
        if said.pop("sha256") != digest(said):
            differs.append("provenance.json: its sha256 is not that of its content")
        wanted, counted, parents = said["labels"]["sha256"], said["counts"], said["parents"]
        made_from = digest(said["made_from"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{beside}: expected a provenance file, found {error!r}"]
    for name, expected in parents.items():
        file = path.parent / name
        if not file.exists():
            differs.append(f"parent {name}: missing")
        elif sha256_of_file(file) != expected:
            differs.append(f"parent {name}: its sha256 differs")
    try:
        if sha256_of_file(path) != wanted:
            differs.append(f"{path.name}: its sha256 differs")
        content = json.loads(path.read_bytes())
        if content["info"]["provenance"] != made_from:
            differs.append(f"{path.name}: made from something else than provenance.json says")
        rows = defaultdict(list)
        for annotation in content["annotations"]:
            rows[annotation["image_id"]].append(annotation)
        counts = Counts([c["name"] for c in content["categories"]])
        for image in content["images"]:
            counts.add(rows.pop(image["id"], []))
        found = counts.figures()
        if rows:
            differs.append(f"annotations of images that are not there: {sorted(rows)[:5]}")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return [*differs, f"{path}: expected a COCO file, found {error!r}"]
    for name, value in found.items():
        if counted.get(name) != value:
            differs.append(f"{name}: expected {counted.get(name)}, found {value}")
    parts = [counted.get(f"{name}images", 0) for name in ("", "unsure_", "rejected_", "asked_")]
    if sum(parts[:3]) != parts[3]:
        differs.append(f"images: expected {parts[3]}, which were asked for, found {sum(parts[:3])}")
    return differs
