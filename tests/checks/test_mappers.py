"""Fields of the mappers that would stop the first step, or the evaluation after the last."""

import pytest

from d2kd.checks import check_mappers
from d2kd.config import load_config
from d2kd.data import PartialMapper

MAPPER = "dataloader.train.mapper"


def config(*overrides: str):
    return load_config("configs/demo/student.py", overrides)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([f"{MAPPER}.is_train=False"], r"mapper.is_train: expected True, found False"),
        ([f"+{MAPPER}.recompute_boxes=True"], r"train.mapper.recompute_boxes: expected use_inst"),
        (["+dataloader.test.mapper.recompute_boxes=True"], r"test.mapper.recompute_boxes: exp"),
        (
            [f"+{MAPPER}.use_instance_mask=True", f"+{MAPPER}.instance_mask_format=polygons"],
            r"instance_mask_format: expected polygon or bitmask, found 'polygons'",
        ),
        ([f"{MAPPER}=null"], r"dataloader.train.mapper: expected a mapper .* found none"),
    ],
)
def test_fields_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_mappers(config(*overrides))
    if f"{MAPPER}=null" not in overrides:
        cfg = config(*overrides)
        cfg.dataloader.train.mapper._target_ = PartialMapper
        with pytest.raises(ValueError, match=message):
            check_mappers(cfg)


class OwnMapper(PartialMapper):
    def __call__(self, image):
        return image


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [f"+{MAPPER}.recompute_boxes=True", f"+{MAPPER}.use_instance_mask=True"],
        ["dataloader.test.mapper.is_train=True"],
    ],
)
def test_what_works_passes(overrides):
    check_mappers(config(*overrides))


def test_a_mapper_with_a_way_of_its_own_is_not_judged():
    cfg = config(f"{MAPPER}.is_train=False")
    cfg.dataloader.train.mapper._target_ = OwnMapper
    check_mappers(cfg)
