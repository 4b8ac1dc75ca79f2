"""What a mean teacher needs from the rest of the config."""

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper

from d2kd.checks import check_mean_teacher
from d2kd.config import check_config, load_config
from d2kd.data import PartialMapper, TwoSizeMapper, TwoViewMapper
from d2kd.pseudo import MeanTeacher


class OwnMapper(DatasetMapper):
    """It may give a weak view."""


def config(mapper=TwoViewMapper, name="distill", **train):
    cfg = load_config(f"configs/demo/{name}.py")
    cfg.train.mean_teacher = L(MeanTeacher)(burn_in=3)
    cfg.train.ema.decay, cfg.train.max_iter = 0.9, 4
    cfg.train.update(train)
    cfg.dataloader.train.mapper._target_ = mapper
    return cfg


@pytest.mark.parametrize("mapper", [TwoViewMapper, OwnMapper])
def test_what_works_passes(mapper):
    check_mean_teacher(config(mapper))


@pytest.mark.parametrize("mapper", [DatasetMapper, PartialMapper, TwoSizeMapper])
def test_mappers_without_a_weak_view_are_refused(mapper):
    with pytest.raises(ValueError, match=rf"TwoViewMapper, .* found {mapper.__name__}\."):
        check_mean_teacher(config(mapper))
    check_mean_teacher(config(mapper, mean_teacher=None))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(name="student"), "model: expected a Distiller, which masks the losses"),
        (dict(ema=dict(decay=0)), r"train.ema.decay: expected a decay, .* found 0"),
        (dict(max_iter=3), r"burn_in: expected fewer steps than train.max_iter, 3, found 3"),
    ],
)
def test_what_it_needs_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check_mean_teacher(config(**changes))


def test_an_evaluation_does_not_need_it():
    cfg = config(name="student")
    cfg.dataloader, cfg.train.device = {}, "cpu"
    check_config(cfg)
    with pytest.raises(ValueError, match="model: expected a Distiller"):
        check_config(cfg, training=True)
