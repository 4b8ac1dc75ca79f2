import pytest
import torch
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf

from d2kd.resume import RunRecord, first_step, same_hyperparameters, training_classes


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
