"""The learning rate's multiplier: milestones, and its value throughout a training."""

import logging

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    StepParamScheduler,
)
from omegaconf import OmegaConf

from d2kd.checks import check_schedule

PATH = "lr_multiplier.scheduler"


def check(multiplier, max_iter: int = 90) -> None:
    cfg = OmegaConf.create(dict(train=dict(max_iter=max_iter)), flags={"allow_objects": True})
    cfg.lr_multiplier = multiplier
    nodes = [("lr_multiplier", cfg.lr_multiplier)]
    if "scheduler" in multiplier:
        nodes.append((PATH, cfg.lr_multiplier.scheduler))
    check_schedule(cfg, nodes)


def warmup(length: float = 0.1, **steps):
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(**steps), warmup_length=length, warmup_factor=0.001
    )


@pytest.mark.parametrize(
    "multiplier",
    [
        warmup(values=[1.0, 0.1], milestones=[60], num_updates=90),
        warmup(values=[1.0, 0.1, 0.01], milestones=[8, 11, 12]),
        warmup(values=[1.0, 0.1], num_updates=90),
        L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    ],
)
def test_right_schedules_pass(multiplier):
    check(multiplier)


@pytest.mark.parametrize(
    "steps, message",
    [
        (
            dict(values=[1, 0.1], milestones=[95], num_updates=90),
            "milestones: .*below num_.*=90",
        ),
        (dict(values=[1, 0.1, 0.01], milestones=[80, 60], num_updates=90), "increasing numbers"),
        (
            dict(values=[1, 0.1, 0.01], milestones=[60, 80]),
            r"a list of 3 numbers for 3 values, because without num_updates the last milestone is "
            r"the end of training, found \[60, 80\]. Add num_updates=90",
        ),
        (dict(values=[1, 0.1], milestones=[30, 60], num_updates=90), "a list of 1 numbers for 2"),
        (dict(values=[1, 0.1], milestones=60, num_updates=90), "a list of 1 numbers .*found 60"),
        (dict(values=[1, 0.1], milestones=["x"], num_updates=90), "milestones: expected a number"),
        (
            dict(values=[1, 0.1], milestones=[0], num_updates=90),
            "milestones: .*a number > 0",
        ),
        (dict(values=[1, -0.1], milestones=[60], num_updates=90), "values: expected a number >= 0"),
        (dict(values=[1, 0.1], milestones=[1], num_updates=1), "num_updates: .*number >= 2"),
        (dict(values="abc", milestones=[60], num_updates=90), "values: expected a list of factors"),
        (dict(values=[1, 0.1]), "expected a schedule that can be built, found ValueError"),
    ],
)
def test_wrong_milestones_are_named(steps, message):
    with pytest.raises(ValueError, match=rf"lr_multiplier.*{message}"):
        check(warmup(**steps))


def test_a_factor_that_is_negative_or_infinite_is_named():
    negative = L(CosineParamScheduler)(start_value=1.0, end_value=-1.0)
    with pytest.raises(ValueError, match=r"lr_multiplier: expected a finite factor >= 0 at step"):
        check(negative)
    infinite = L(CosineParamScheduler)(start_value=float("inf"), end_value=0.0)
    with pytest.raises(ValueError, match=r"at step 0 of 90, found (inf|nan)"):
        check(infinite)


def test_a_schedule_that_fails_after_the_last_step_is_named():
    steps = L(StepParamScheduler)(num_updates=90, values=[1.0, 0.1])
    with pytest.raises(ValueError, match=r"at step 90 of 90, found '.*IndexError: list index"):
        check(steps)


def test_milestones_that_are_scaled_to_another_length_are_said(caplog):
    with caplog.at_level(logging.WARNING, "d2kd.checks"):
        check(warmup(values=[1, 0.1, 0.01], milestones=[60, 80], num_updates=90), max_iter=180)
        assert "the learning rate changes at step 120, 160" in caplog.text
        caplog.clear()
        check(warmup(values=[1, 0.1, 0.01], milestones=[60, 80], num_updates=90))
    assert not caplog.text


@pytest.mark.parametrize("end, max_iter, dates", [(90, 180, "step 120, 160"), (90, 90, "")])
def test_a_last_milestone_that_is_not_the_end_of_training_is_said(caplog, end, max_iter, dates):
    schedule = warmup(length=0, values=[1, 0.1, 0.01], milestones=[60, 80, end])
    with caplog.at_level(logging.WARNING, "d2kd.checks"):
        check(schedule, max_iter)
    said = f"shares of the last one, {end}, which is the end of training without num_updates"
    assert (said in caplog.text and dates in caplog.text) if dates else not caplog.text
    # fvcore itself changes the rate at these steps.
    factor = instantiate(schedule)
    changes = [s for s in range(1, max_iter) if factor(s / max_iter) != factor((s - 1) / max_iter)]
    assert not dates or dates == f"step {', '.join(map(str, changes))}"
