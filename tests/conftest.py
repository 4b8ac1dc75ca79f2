import pytest
import torch
from detectron2.utils.events import EventStorage


@pytest.fixture(autouse=True)
def storage():
    """Set a seed, and provide the storage that Detectron2's detectors write to in training."""
    torch.manual_seed(0)
    with EventStorage() as storage:
        yield storage
