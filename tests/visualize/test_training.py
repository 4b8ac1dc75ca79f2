"""Pictures while a student trains: they leave the run as it is."""

import logging
import random

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.matching import GroundTruth
from d2kd.methods import FGD, MCDropout, Methods
from d2kd.visualize import Networks, Picture, TrainingPictures, training, training_pictures
from tests import toys


class Trainer:
    """What the hook uses of Detectron2's trainer."""

    iter, max_iter = 0, 5

    def __init__(self, storage: EventStorage):
        self.storage = storage


@pytest.fixture
def hook():
    teacher = Teacher(toys.retinanet(8), None)
    methods = Methods(fgd=FGD(uncertainty=MCDropout()))
    model = Distiller(student=toys.retinanet(4), teacher=teacher, methods=methods)
    image = toys.image()
    pixels = image.pop("image").permute(1, 2, 0).numpy()
    truth = GroundTruth(np.array([[8.0, 8, 40, 40]]), np.zeros(1, dtype=int))
    image["image"] = torch.from_numpy(pixels).permute(2, 0, 1)
    picture = Picture(pixels, image, pixels, truth)
    hook = TrainingPictures([picture] * 2, Networks.of(model, "BGR"), "abc", period=2)
    hook.trainer = Trainer(EventStorage(0))
    return hook


def steps(hook: TrainingPictures) -> list[tuple[str, int]]:
    with hook.trainer.storage as storage:
        for step in range(hook.trainer.max_iter):
            hook.trainer.iter = storage.iter = step
            hook.after_step()
        return [(name, step) for name, _, step in storage._vis_data]


def test_every_period_and_after_the_last_step(hook, monkeypatch):
    monkeypatch.setattr(training, "render_sheet", lambda *a, **k: np.zeros((2, 3, 3), np.uint8))
    names = ["pictures/0", "pictures/1"]
    assert steps(hook) == [(name, step) for step in (1, 3, 4) for name in names]
    assert hook.trainer.storage._vis_data[0][1].shape == (3, 2, 3)


def test_modes_statistics_and_random_numbers_stay(hook):
    student = hook.networks.students["student"]
    student.backbone.bottom_up.stem.eval()  # a part that a user has frozen
    modes = {name: module.training for name, module in student.named_modules()}
    state = {k: v.clone() for k, v in student.state_dict().items()}
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    hook.trainer.iter = 1
    with hook.trainer.storage as storage:
        hook.after_step()
        (name, pixels, _), _ = storage._vis_data
    assert name == "pictures/0" and pixels.dtype == np.uint8 and pixels.std() > 10
    assert {name: module.training for name, module in student.named_modules()} == modes
    assert all(torch.equal(v, state[k]) for k, v in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and (np.random.get_state()[1] == before[2]).all()


def test_an_error_while_drawing_does_not_end_the_training(hook, monkeypatch, caplog):
    def fails(*args, **texts):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "render_sheet", fails)
    with caplog.at_level(logging.ERROR):
        assert steps(hook) == []
    assert "pictures of step 2 could not be drawn; the training goes on" in caplog.text
    assert "out of memory" in caplog.text
    assert hook.networks.students["student"].training


def test_networks_of_a_detector_have_no_methods():
    model = nn.Linear(1, 1)
    found = Networks.of(model, "RGB")
    assert found.students == {"detector": model} and found.teacher is None
    assert found.input_format == "RGB" and not found.methods


def test_a_period_of_0_is_off_and_pictures_need_test_images():
    train = dict(pictures=dict(period=0, images=1, threshold=0.3))
    cfg = OmegaConf.create(dict(train=train, dataloader=dict(test=dict(dataset={}))))
    assert training_pictures(cfg, toys.retinanet()) is None
    cfg.train.pictures.period = 5
    with pytest.raises(ValueError, match=r"train.pictures: expected dataloader.test .* of mapper"):
        training_pictures(cfg, toys.retinanet())


def records() -> list[int]:
    return list(range(6))


def test_the_images_are_spread_over_the_test_set(monkeypatch):
    monkeypatch.setattr(training, "make_picture", lambda record, mapper: record)
    made = {name: dict(_target_=f"{__name__}.records") for name in ("dataset", "mapper")}
    train = dict(pictures=dict(period=1, images=3, threshold=0.3))
    cfg = OmegaConf.create(dict(train=train, dataloader=dict(test=made)))
    assert training_pictures(cfg, toys.retinanet()).pictures == [0, 2, 4]
