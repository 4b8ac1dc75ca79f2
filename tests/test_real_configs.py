"""The experiments on real photographs load, build, and take a step with every method."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig

from d2kd import Distiller
from d2kd.config import check_config, load_config
from d2kd.loading import without_weights
from d2kd.pseudo.job import LabelingJob
from d2kd.tools.compare.entries import read_entries

pytest.importorskip("timm")

ROOT = Path(__file__).parents[1]
REAL = ROOT / "configs/experiments/real"
RUNS = sorted(
    str(path.relative_to(REAL))
    for path in REAL.glob("*/*.py")
    if path.name != "common.py" and "labels" not in path.name
)
LABELS = sorted(str(path.relative_to(REAL)) for path in REAL.glob("*/*labels.py"))
TABLES = sorted(str(path.relative_to(REAL)) for path in REAL.glob("*/*.txt"))


NEU = ["crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"]
PCB = ["open", "short", "mousebite", "spur", "copper", "pin-hole"]
DATA = {
    **{f"neu_det_{split}": NEU for split in ("train", "val")},
    **{f"deep_pcb_{split}": PCB for split in ("train", "val")},
    **{f"plates_{split}": ["plate"] for split in ("us", "eu", "ro_train", "ro_valid")},
}


def records() -> list[dict]:
    """Ten images without boxes; there are no files."""
    image = dict(height=96, width=96, annotations=[])
    return [dict(image, file_name=f"{i}.jpg", image_id=i) for i in range(10)]


@pytest.fixture(autouse=True)
def data():
    """The data sets of datasets/README.md."""
    for name, classes in DATA.items():
        DatasetCatalog.register(name, records)
        MetadataCatalog.get(name).set(thing_classes=classes)
    yield
    for name in DATA:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def without_files(cfg: DictConfig) -> DictConfig:
    """The config without weights that only exist after other runs."""
    if cfg.model.get("teacher"):
        cfg.model.teacher.model = load_config(cfg.model.teacher.model).model
        cfg.model.teacher.compile = False  # takes a minute, and is tested with the teacher
    without_weights(cfg.model)
    return cfg


def batch(size: int = 96) -> list[dict]:
    """Two images with a box each."""
    generator = torch.Generator().manual_seed(0)
    boxes = Boxes(torch.tensor([[10.0, 12.0, 60.0, 70.0]]))
    return [
        dict(
            image=torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator),
            height=size,
            width=size,
            instances=Instances((size, size), gt_boxes=boxes, gt_classes=torch.tensor([0])),
        )
        for _ in range(2)
    ]


@pytest.mark.parametrize("name", RUNS)
def test_loads_and_builds(name):
    cfg = without_files(load_config(str(REAL / name)))
    check_config(cfg)
    assert cfg.train.output_dir.startswith(f"output/real/{name.split('/')[0]}/")
    detector = instantiate(cfg.model)
    detector = detector.student if isinstance(detector, Distiller) else detector
    assert sum(p.numel() for p in detector.parameters()) > 5e4


@pytest.mark.parametrize("name", LABELS)
def test_labels_have_known_fields(name):
    labels = LazyConfig.load(str(REAL / name)).labels
    assert set(labels) <= set(LabelingJob.__dataclass_fields__)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_a_table_loads_and_is_named_once(table):
    entries = read_entries([], REAL / table)
    for entry in entries:
        path = ROOT / entry.config
        overrides = [x.replace("{seed}", "1") for x in entry.overrides]
        check_config(without_files(load_config(str(path), overrides)))
    command = (REAL / table).read_text().splitlines()[1]
    assert re.search(rf"--file configs/experiments/real/{re.escape(table)} ", command)


@pytest.mark.parametrize(
    "entry",
    [e for e in read_entries([], REAL / "neu_det/screen.txt") if "balance" not in e.name],
    ids=lambda entry: entry.name,
)
def test_a_step_of_every_method(entry):
    cfg = without_files(load_config(str(ROOT / entry.config), list(entry.overrides)))
    model = instantiate(cfg.model).train()
    with EventStorage():
        losses = model(batch())
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    methods = sum("distill" in name for name in losses)
    assert methods == 0 if entry.name == "alone" else methods > 0
