"""A Ctrl-C, which the terminal sends to all processes, ends no worker of a data loader."""

import os
import signal

import pytest
from detectron2.data import build_detection_test_loader
from torch.utils.data import DataLoader

from d2kd.data.named_errors import name_errors
from d2kd.data.workers import ignore_interrupts


class Interrupted:
    """Images; the worker that reads the first one gets a Ctrl-C."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if not index:
            os.kill(os.getpid(), signal.SIGINT)
        return index


def interrupt(image: dict) -> int:
    return Interrupted()[image["image_id"]]


def test_a_worker_of_our_own_loader_goes_on():
    loader = DataLoader(
        Interrupted(), batch_size=None, num_workers=1, worker_init_fn=ignore_interrupts
    )
    assert list(loader) == [0, 1, 2]


def test_a_worker_of_detectron2s_loader_goes_on():
    images = [{"image_id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    loader = build_detection_test_loader(images, mapper=name_errors(interrupt), num_workers=1)
    assert list(loader) == [[0], [1], [2]]


@pytest.fixture
def ctrl_c_is_on():
    """A shell's background job, as these tests may be, ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_without_workers_ctrl_c_stops_at_once(ctrl_c_is_on):
    images = [{"image_id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    loader = build_detection_test_loader(images, mapper=name_errors(interrupt), num_workers=0)
    with pytest.raises(KeyboardInterrupt):
        list(loader)
