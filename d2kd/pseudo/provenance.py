"""Record what labels were made from and what they contain, and check it later."""

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

__all__ = ["SCHEMA", "Counts", "digest", "dump", "environment", "read_made_from", "verify"]

SCHEMA = 2
"""Format number of labels.json and provenance.json. Raise it when the meaning of a field changes,
or when a class that ``made_from.settings`` names (such as `FixedThresholds`) is moved or renamed.

1: thresholds were called bars in ``made_from``. The rest is the same.
2: the present format.
"""

_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False)


def dump(content: Any) -> str:
    """JSON on one line; the same content always gives the same text. Raises ValueError for NaN."""
    return _ENCODER.encode(content)


def digest(content: Any) -> str:
    """sha256 of content that JSON can represent."""
    return hashlib.sha256(dump(content).encode()).hexdigest()


class Counts:
    """Counts boxes and images of a COCO file of labels, image by image."""

    def __init__(self, classes: Sequence[str]):
        self.classes = classes
        self.boxes, self.ignored = np.zeros((2, len(classes)), int)
        self.per_image: Counter[int] = Counter()

    def add(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        """Count one image, given all of its annotations."""
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
    """Versions, commit, time and command, which may explain why two runs differ."""
    import torch

    versions: dict[str, str | None] = {"python": sys.version.split()[0], "cuda": torch.version.cuda}
    for name in ("d2kd", "detectron2", "numpy", "pycocotools", "torch", "torchvision"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # not installed, but imported from its folder
            versions[name] = getattr(sys.modules.get(name), "__version__", None)
    git = ["git", "-C", str(Path(__file__).parent)]
    git += ["describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    written = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"versions": versions, "commit": commit, "written": written, "command": sys.argv}


def read_made_from(path: str | Path) -> dict[str, Any]:
    """What a COCO file of labels was made from: teachers and settings; {} if nothing says it."""
    provenance = Path(path).with_name("provenance.json")
    return json.loads(provenance.read_text()).get("made_from", {}) if provenance.is_file() else {}


def verify(path: str | Path) -> list[str]:
    """Compare a COCO file of labels with its ``provenance.json`` and with its parents.

    All digests and counts are computed again.

    Returns:
        one sentence for each difference; an empty list if there is none.
    """
    path, differences = Path(path), []
    provenance = path.with_name("provenance.json")
    try:
        text = provenance.read_text()
        recorded = json.loads(text)
        if text != json.dumps(recorded, indent=1) + "\n":
            differences.append("provenance.json: not as it was written")
        if recorded.pop("sha256") != digest(recorded):
            differences.append("provenance.json: its sha256 does not match its content")
        expected_sha256, parents = recorded["labels"]["sha256"], recorded["parents"]
        expected_counts = recorded["counts"]
        made_from = digest(recorded["made_from"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{provenance}: expected a provenance file, found {error!r}"]
    for name, expected in parents.items():
        file = path.parent / name
        if not file.exists():
            differences.append(f"parent {name}: missing")
        elif sha256_of_file(file) != expected:
            differences.append(f"parent {name}: its sha256 differs")
    try:
        if sha256_of_file(path) != expected_sha256:
            differences.append(f"{path.name}: its sha256 differs")
        content = json.loads(path.read_bytes())
        if content["info"]["provenance"] != made_from:
            differences.append(f"{path.name}: not made from the settings in provenance.json")
        rows = defaultdict(list)
        for annotation in content["annotations"]:
            rows[annotation["image_id"]].append(annotation)
        counts = Counts([c["name"] for c in content["categories"]])
        for image in content["images"]:
            counts.add(rows.pop(image["id"], []))
        if rows:
            differences.append(f"annotations of images that are not listed: {sorted(rows)[:5]}")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return [*differences, f"{path}: expected a COCO file, found {error!r}"]
    for name, value in counts.figures().items():
        if expected_counts.get(name) != value:
            differences.append(f"{name}: expected {expected_counts.get(name)}, found {value}")
    *parts, asked = (
        expected_counts.get(f"{kind}images", 0) for kind in ("", "unsure_", "rejected_", "asked_")
    )
    if sum(parts) != asked:
        differences.append(f"images: expected {asked}, which were asked for, found {sum(parts)}")
    return differences
