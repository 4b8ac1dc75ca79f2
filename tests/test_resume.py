import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog
from detectron2.engine import TrainerBase
from omegaconf import OmegaConf

from d2kd.methods import PKD, Methods
from d2kd.pseudo import FixedThresholds, MeanTeacher
from d2kd.resume import (
    RunRecord,
    first_step,
    recorded_classes,
    run_settings,
    same_hyperparameters,
    training_classes,
)


def test_a_run_goes_on_after_the_steps_that_are_done(caplog):
    caplog.set_level("INFO")
    assert first_step(4, 10) == 4
    assert "4 of 10 steps are done" in caplog.text


def test_a_finished_run_says_so(caplog):
    assert first_step(10, 10) == 10
    assert "the run is finished, all 10 steps are done" in caplog.text


def test_fewer_steps_than_are_done_are_an_error():
    with pytest.raises(ValueError, match=r"train.max_iter to be at least the 10 .* found 6"):
        first_step(10, 6)


@pytest.mark.parametrize("other", [["dog", "cat"], ["cat"], ["cat", "dog", "cow"], ["Cat", "dog"]])
def test_other_classes_than_the_run_began_with_are_an_error(other):
    state = RunRecord(10, ["cat", "dog"]).state_dict()
    with pytest.raises(ValueError, match=r"began with, 2 \(cat, dog\), found .*dataloader.train"):
        RunRecord(10, other).load_state_dict(state)


def test_the_same_and_unknown_classes_are_no_error(caplog):
    state = RunRecord(10, ["cat", "dog"]).state_dict()
    RunRecord(10, ("cat", "dog")).load_state_dict(state)
    RunRecord(10, None).load_state_dict(state)
    RunRecord(10, ["x"]).load_state_dict(RunRecord(10, None).state_dict())
    assert not caplog.text


def test_another_number_of_steps_is_said(caplog):
    RunRecord(20, None).load_state_dict(RunRecord(10, None).state_dict())
    assert "began with train.max_iter=10, the config has 20" in caplog.text


def online(**changes):
    """A config with a method and a mean teacher."""
    fields = {"burn_in": 5, "high": 0.7, "weight": 2.0} | changes
    teacher = L(MeanTeacher)(
        burn_in=fields["burn_in"],
        thresholds=L(FixedThresholds)(high=fields["high"], low=0.3),
        fusion=None,
    )
    methods = L(Methods)(pkd=L(PKD)(weight=fields["weight"], levels=["p3", "p4"]))
    cfg = {"model": {"methods": methods}, "train": {"mean_teacher": teacher}}
    return OmegaConf.create(cfg, flags={"allow_objects": True})


def record(cfg):
    return RunRecord(10, None, run_settings(cfg))


def test_the_settings_are_those_of_methods_and_mean_teacher():
    assert run_settings(online()) == {
        "model.methods._target_": "Methods",
        "model.methods.pkd._target_": "PKD",
        "model.methods.pkd.weight": 2.0,
        "model.methods.pkd.levels[0]": "p3",
        "model.methods.pkd.levels[1]": "p4",
        "train.mean_teacher._target_": "MeanTeacher",
        "train.mean_teacher.burn_in": 5,
        "train.mean_teacher.thresholds._target_": "FixedThresholds",
        "train.mean_teacher.thresholds.high": 0.7,
        "train.mean_teacher.thresholds.low": 0.3,
    }
    assert run_settings(OmegaConf.create({"model": {}, "train": {"mean_teacher": None}})) == {}


@pytest.mark.parametrize(
    "change, began, now",
    [
        ({"burn_in": 6}, "train.mean_teacher.burn_in=5", "6"),
        ({"high": 0.8}, "train.mean_teacher.thresholds.high=0.7", "0.8"),
        ({"weight": 1.5}, "model.methods.pkd.weight=2.0", "1.5"),
    ],
)
def test_a_setting_that_has_changed_is_said(change, began, now, caplog):
    record(online(**change)).load_state_dict(record(online()).state_dict())
    (text,) = caplog.messages
    assert text.startswith(f"--resume: the run began with {began}, the config has {now}.")


def test_another_batch_is_said(caplog):
    began, now = (
        OmegaConf.create(dict(dataloader=dict(train=dict(total_batch_size=x)))) for x in (2, 1)
    )
    record(now).load_state_dict(record(began).state_dict())
    assert "began with dataloader.train.total_batch_size=2, the config has 1." in caplog.text


def test_classes_are_kept_in_a_checkpoint():
    trainer = TrainerBase()
    trainer.register_hooks([RunRecord(9, ["cat", "dog"])])
    trainer.iter = 0
    checkpoint = {"trainer": trainer.state_dict()}
    assert recorded_classes(checkpoint) == ("cat", "dog")
    for other in ({}, {"model": {}}, {"trainer": None}, None):
        assert recorded_classes(other) == ()


def test_a_method_that_is_gone_is_said(caplog):
    cfg = online()
    cfg.model.methods = None
    record(cfg).load_state_dict(record(online()).state_dict())
    assert "model.methods.pkd.weight=2.0, the config has nothing" in caplog.text


def test_names_of_targets_are_those_of_the_classes():
    cfg = online()
    cfg.model.methods.pkd._target_ = "d2kd.methods.pkd.PKD"  # as in a config.yaml
    assert run_settings(cfg) == run_settings(online())


def test_equal_and_unknown_settings_are_not_said(caplog, tmp_path):
    state = record(online()).state_dict()
    torch.save(state, tmp_path / "state.pth")
    record(online()).load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    del state["settings"]  # a checkpoint of an earlier version
    record(online(burn_in=6)).load_state_dict(state)
    assert not caplog.text


def test_classes_are_those_of_the_training_set():
    MetadataCatalog.get("toy_resume").thing_classes = ["b", "a"]
    try:
        for names in ("toy_resume", ["toy_resume", "other"]):
            cfg = OmegaConf.create({"dataloader": {"train": {"dataset": {"names": names}}}})
            assert training_classes(cfg) == ["b", "a"]
        assert training_classes(OmegaConf.create({"dataloader": {"train": {}}})) is None
    finally:
        MetadataCatalog.remove("toy_resume")


def sgd(lr, **more):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, **more)


def test_values_that_the_checkpoint_replaces_are_said(caplog):
    state, optimizer = sgd(0.5, momentum=0.9).state_dict(), sgd(0.25, momentum=0.9)
    with same_hyperparameters(optimizer):
        optimizer.load_state_dict(state)
    assert "keeps optimizer.lr=0.5 from its checkpoint; the config's 0.25 is not" in caplog.text
    assert "momentum" not in caplog.text


def test_a_decayed_learning_rate_is_no_difference(caplog):
    first, second = sgd(0.5), sgd(0.5)
    for optimizer in (first, second):
        torch.optim.lr_scheduler.StepLR(optimizer, 1)  # notes initial_lr
    first.param_groups[0]["lr"] = 0.1
    with same_hyperparameters(second):
        second.load_state_dict(first.state_dict())
    assert not caplog.text


def test_the_state_of_another_kind_of_optimizer_is_an_error():
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    for optimizer, other, lost in ((sgd(0.5), adam, "momentum"), (adam, sgd(0.5), "betas")):
        with (
            pytest.raises(ValueError, match=rf"expected the state .*found .*without {lost}"),
            same_hyperparameters(optimizer),
        ):
            optimizer.load_state_dict(other.state_dict())


def test_the_state_of_another_optimizer_is_an_error():
    two = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)) for _ in range(2)], lr=0.5)
    optimizer = sgd(0.5)
    with (
        pytest.raises(ValueError, match=r"expected the state of this config's SGD, found another"),
        same_hyperparameters(optimizer),
    ):
        optimizer.load_state_dict(two.state_dict())
