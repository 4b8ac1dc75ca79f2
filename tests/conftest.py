import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage

from tests import toys


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True, scope="session")
def audit_cache(tmp_path_factory):
    """Audits cache nothing in the user's folder, also in processes that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2KD_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def storage():
    """Set a seed, and provide the storage that Detectron2's detectors write to in training."""
    torch.manual_seed(0)
    with EventStorage() as storage:
        yield storage


@pytest.fixture
def same_normalizer(monkeypatch):
    """Make dense detectors divide their losses by 100 in each step, and not by a running mean."""
    monkeypatch.setattr(DenseDetector, "_ema_update", lambda *_: 100.0)


@pytest.fixture(autouse=True)
def open_log_handlers():
    """Remove log handlers of earlier tests: pytest has closed the streams that they write to."""
    for name in ("d2kd", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture
def new_datasets():
    """Names that the test registers are free again after it."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.fixture
def my_data(tmp_path, monkeypatch, new_datasets):
    """A user's folder with images/, train.json and val.json, for the configs in my_data/."""
    folder = toys.coco_folder(tmp_path / "farm")
    monkeypatch.setenv("D2KD_DATA", str(folder))
    monkeypatch.setenv("D2KD_UNLABELED", str(folder / "images"))
    monkeypatch.setenv("D2KD_OUTPUT", str(tmp_path / "output"))
    return folder
