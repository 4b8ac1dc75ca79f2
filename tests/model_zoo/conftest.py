"""A model zoo with one small student, in a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from d2kd import model_zoo, recipes
from d2kd.checkpoint import Checkpointer
from d2kd.files import sha256_of_file
from d2kd.model_zoo import students
from d2kd.tools import publish
from tests import toys

# Its data set is not registered anywhere, and the weights of its backbone do not exist.
CONFIG = """
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, get_detection_dataset_dicts

from d2kd.backbones import LibraryBackbone
from tests import toys

model = L(toys.retinanet)(input_format="RGB")
train = dict(device="cpu")
dataloader = dict(
    train=dict(dataset=L(get_detection_dataset_dicts)(names="never_registered")),
    test=dict(
        dataset=L(get_detection_dataset_dicts)(names="never_registered"),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=96, max_size=128)],
            image_format="RGB",
        ),
    ),
)
"""


@pytest.fixture
def trained():
    """A detector that finds something: the scores of random weights would all be too low."""
    model = toys.retinanet(input_format="RGB").eval()
    torch.nn.init.normal_(model.head.cls_score.weight)
    torch.nn.init.zeros_(model.head.cls_score.bias)
    return model


@pytest.fixture
def zoo(tmp_path, monkeypatch, trained) -> Path:
    """The folder of the configs, with the config toy/student.py and its checkpoint.

    The table has no row.
    """
    (tmp_path / "common").mkdir()
    shutil.copy(recipes.CONFIGS / "common" / "train.py", tmp_path / "common")
    for module in (recipes, students, publish):
        monkeypatch.setattr(module, "CONFIGS", tmp_path)
    (tmp_path / "students.json").write_text("{}")
    monkeypatch.setattr(students, "TABLE", tmp_path / "students.json")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "student.py").write_text(CONFIG)
    Checkpointer(trained, str(tmp_path / "toy")).save("student")
    return tmp_path


@pytest.fixture
def published(zoo, trained) -> model_zoo.Entry:
    """A row of the table, `toy_tiny`; the safetensors package writes its weights."""
    path = zoo / "toy" / "toy_tiny.safetensors"
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, path)
    entry = model_zoo.Entry(
        config="toy/student.py",
        weights="toy/toy_tiny.safetensors",
        sha256=sha256_of_file(path),
        classes=("cat", "dog", "cow"),
        ap=12.3,
        data="toy_test",
        parameters=1,
        gflops=0.1,
        training="docs/model_zoo.md",
    )
    students.write_entry("toy_tiny", entry)
    return entry
