"""What is saved is whole and finite; what is loaded fits, and the log or an error says how."""

import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from d2kd.checkpoint import Checkpointer
from d2kd.files import DiskFullError


class Counter:
    """A checkpointable, as a trainer is one."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def linear(outputs=2):
    torch.manual_seed(0)
    return nn.Linear(3, outputs)


def run(folder, model=None, count=0):
    return Checkpointer(model or linear(), str(folder), trainer=Counter(count))


@pytest.fixture
def saved(tmp_path):
    """A folder with two checkpoints, of which the second is the last."""
    model = linear()
    for step in (1, 2):
        with torch.no_grad():
            model.weight.fill_(step)
        run(tmp_path, model, step).save(f"model_{step}", iteration=step)
        os.utime(tmp_path / f"model_{step}.pth", (step, step))
    return tmp_path


def test_a_run_continues_from_its_last_checkpoint(saved, caplog):
    caplog.set_level("INFO")
    checkpointer = run(saved)
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.checkpointables["trainer"].count == 2
    assert checkpointer.model.weight[0, 0] == 2
    assert "Resumed: 2 tensors matched, 0 missing, 0 unexpected" in caplog.text


def test_resuming_without_a_checkpoint_is_said(tmp_path, caplog):
    run(tmp_path).resume_or_load("", resume=True)
    assert caplog.text.endswith("found none. The run starts from the beginning.\n")
    caplog.clear()
    (tmp_path / "previous_1").mkdir()
    (tmp_path / "previous_1/model_final.pth").touch()
    run(tmp_path).resume_or_load("", resume=True)
    assert "starts from the beginning. Finished runs are in previous_1." in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weights", "trainer"])
def test_a_state_that_is_not_finite_is_not_saved(saved, value, where):
    model = linear()
    checkpointer = run(saved, model, torch.tensor([1.0, value]) if where == "trainer" else 3)
    if where == "weights":
        model.weight.data[0, 1] = value
    name = "model.weight" if where == "weights" else "trainer.count"
    with pytest.raises(
        FloatingPointError, match=rf"model_3.pth: .*1 tensors \({name}\).* still model_2.pth"
    ):
        checkpointer.save("model_3")
    assert sorted(os.listdir(saved)) == ["last_checkpoint", "model_1.pth", "model_2.pth"]
    assert (saved / "last_checkpoint").read_text() == "model_2.pth"


def test_a_buffer_that_is_infinite_by_design_is_saved_and_loaded(tmp_path):
    model = linear()
    model.register_buffer("limits", torch.tensor([0.0, float("inf")]))
    run(tmp_path, model).save("model")
    run(tmp_path, model).resume_or_load("", resume=True)


def spoil_optimizer(path, value):
    content = torch.load(path, weights_only=True)
    moments = {0: {"exp_avg": torch.tensor([0.0, value])}}
    content["trainer"]["optimizer"] = {"state": moments, "param_groups": []}
    torch.save(content, path)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:700]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path: path.unlink(),
    "not finite": lambda path: torch.save(
        {
            "model": {"weight": torch.full((2, 3), torch.nan), "bias": torch.zeros(2)},
            "trainer": {"count": 2},
        },
        path,
    ),
    "optimizer of NaN": lambda path: spoil_optimizer(path, torch.nan),
    "optimizer of infinity": lambda path: spoil_optimizer(path, -torch.inf),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_an_error_that_names_the_newest_whole_one(saved, damage):
    DAMAGES[damage](saved / "model_2.pth")
    with pytest.raises(ValueError) as error:
        run(saved).resume_or_load("", resume=True)
    message = str(error.value)
    assert message.startswith("--resume: ") and str(saved / "model_2.pth") in message
    assert f"The newest checkpoint that is whole is {saved / 'model_1.pth'}" in message
    # The command in the message mends it.
    subprocess.run(message.rsplit("run: ", 1)[1], shell=True, check=True)
    checkpointer = run(saved)
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.checkpointables["trainer"].count == 1


def test_an_optimizer_that_is_not_finite_is_named(saved):
    for name in ("model_1", "model_2"):
        spoil_optimizer(saved / f"{name}.pth", torch.nan)
    found = r"found NaN or infinite values in 1 of its tensors \(trainer.optimizer.state.0.exp_avg"
    with pytest.raises(ValueError, match=found) as error:
        run(saved).resume_or_load("", resume=True)
    assert "No checkpoint in" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n", bytes(11), b"\xff\xfe"])
def test_a_damaged_file_last_checkpoint_is_an_error_that_names_the_newest_whole_one(saved, content):
    (saved / "last_checkpoint").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"--resume: (.|\n)*whole is {saved}/model_2.pth"
    ) as error:
        run(saved).resume_or_load("", resume=True)
    assert f"expected the name of a checkpoint in {saved}/last_checkpoint" in str(error.value)


def test_no_whole_checkpoint_is_said(saved):
    for path in saved.glob("*.pth"):
        DAMAGES["cut"](path)
    with pytest.raises(ValueError, match=r"No checkpoint in .* is whole. Leave out --resume"):
        run(saved).resume_or_load("", resume=True)


def test_resuming_with_other_classes_is_an_error(saved):
    with pytest.raises(ValueError) as error:
        run(saved, linear(outputs=5)).resume_or_load("", resume=True)
    assert "weight (2, 3) in the file, (5, 3) here" in str(error.value)
    assert "num_classes" in str(error.value) and "whole" not in str(error.value)


def test_resuming_from_plain_weights_is_an_error(saved):
    torch.save({"model": linear().state_dict()}, saved / "model_2.pth")
    with pytest.raises(ValueError, match=r"found one without trainer. .*train.init_checkpoint"):
        run(saved).resume_or_load("", resume=True)


def weights(**changes):
    return {**linear().state_dict(), **changes}


@pytest.mark.parametrize(
    "content, line",
    [
        ({"model": weights()}, "2 tensors matched, 0 missing, 0 unexpected, 0 of another shape"),
        (weights(), "2 tensors matched"),
        ({"state_dict": weights()}, "under 'state_dict'"),
        (
            {"model": {f"module.{k}": v for k, v in weights().items()}},
            "2 tensors matched, .*without the prefix 'module.'",
        ),
        ({"model": weights(weight=torch.zeros(5, 3))}, "1 tensors matched, .*1 of another shape"),
        (
            {"model": {**weights(), "distillation.x": torch.zeros(1)}},
            "2 tensors matched, 0 missing, 0",
        ),
    ],
)
def test_initial_weights_are_counted_in_the_log(tmp_path, caplog, content, line):
    caplog.set_level("INFO")
    torch.save(content, tmp_path / "w.pth")
    run(tmp_path).resume_or_load(str(tmp_path / "w.pth"), resume=False)
    lines = [r.getMessage() for r in caplog.records if "Initial weights" in r.getMessage()]
    assert re.search(line, lines[0])


@pytest.mark.parametrize("others, doubt", [(2, False), (3, True)])
def test_initial_weights_of_another_network_are_doubted(tmp_path, caplog, others, doubt):
    more = {f"other.{i}": torch.zeros(1) for i in range(others)}
    torch.save({"model": {**weights(), **more}}, tmp_path / "w.pth")
    run(tmp_path).resume_or_load(str(tmp_path / "w.pth"), resume=False)
    (text,) = caplog.messages  # and not a line for each tensor
    assert f"2 tensors matched, 0 missing, {others} unexpected" in text and "other.0" in text
    assert ("Less than half of the file fits. Is it the right one?" in text) is doubt


@pytest.mark.parametrize(
    "content, message",
    [
        ({"x.y": torch.zeros(1)}, r"expected weights of this Linear, found 0 tensors matched"),
        (weights(weight=torch.full((2, 3), torch.inf)), r"expected finite weights, .*1 of 2"),
        ({"epoch": 3}, r"expected weights at the top or under"),
    ],
)
def test_initial_weights_that_are_of_no_use_are_an_error(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path).resume_or_load(str(tmp_path / "w.pth"), resume=False)
    assert str(tmp_path / "w.pth") in str(error.value)


def test_counters_that_pytorch_fills_in_are_no_match(tmp_path):
    torch.save({"x.y": torch.zeros(1)}, tmp_path / "w.pth")
    model = nn.Sequential(linear(), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"expected weights of this Sequential, found 0 tensors"):
        run(tmp_path, model).resume_or_load(str(tmp_path / "w.pth"), resume=False)


def test_what_pytorch_and_detectron2_fill_in_is_not_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    model = nn.Sequential(linear(), nn.BatchNorm1d(2), FrozenBatchNorm2d(2))
    whole = model.state_dict()
    filled = [k for k in whole if "num_batches" in k or k.startswith("2.running")]
    assert len(whole) == 11 and len(filled) == 3
    for lacking, count in (((), 11), (filled, 8)):
        torch.save({k: v for k, v in whole.items() if k not in lacking}, tmp_path / "w.pth")
        caplog.clear()
        run(tmp_path, model).resume_or_load(str(tmp_path / "w.pth"), resume=False)
        assert f"Initial weights: {count} tensors matched, 0 missing, 0 unexp" in caplog.text


def test_missing_initial_weights_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint at 'nowhere.pth'"):
        run(tmp_path).resume_or_load("nowhere.pth", resume=False)


def test_caffe2_and_pycls_files_are_matched_by_the_endings_of_names(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = linear()

    state = {k: v.numpy() for k, v in linear().state_dict().items()}
    state["weight"] = state["weight"] + 1
    (tmp_path / "w.pkl").write_bytes(
        pickle.dumps({"model": state, "__author__": "x", "matching_heuristics": True})
    )
    torch.save(
        {"model_state": {k: torch.as_tensor(v) for k, v in state.items()}}, tmp_path / "w.pyth"
    )
    for name in ("w.pkl", "w.pyth"):
        model = Wrapped()
        run(tmp_path, model).resume_or_load(str(tmp_path / name), resume=False)
        assert torch.equal(model.body.weight, torch.as_tensor(state["weight"])), name


FILLS_THE_DISK = """
import resource, signal, sys, torch
from tests.checkpoint.test_checkpointer import run
from d2kd.files import DiskFullError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    run(sys.argv[1], torch.nn.Linear(1000, 1000)).save("model_3")
except DiskFullError as error:
    print(error)
    sys.exit(3)
"""


def test_a_checkpoint_without_space_leaves_the_old_ones_and_no_part(saved):
    result = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(saved)], capture_output=True, text=True
    )
    assert result.returncode == 3, result.stderr
    assert "model_3.pth: expected space to write it, found: File too large" in result.stdout
    assert sorted(os.listdir(saved)) == ["last_checkpoint", "model_1.pth", "model_2.pth"]
    assert (saved / "last_checkpoint").read_text() == "model_2.pth"


def test_a_full_disk_is_one_error_of_ours(saved, monkeypatch):
    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2kd.files._RawFile.write", full)
    with pytest.raises(DiskFullError, match=r"found: No space left on device .*Make space"):
        run(saved).save("model_3")


KILLED = """
import os, signal, sys, torch
from tests.checkpoint.test_checkpointer import run
real, moment = getattr(os, sys.argv[2]), sys.argv[3]
def die(*args):
    if moment == "after":
        real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], die)
run(sys.argv[1], count=3).save("model_3", iteration=3)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_run_that_is_killed_while_it_saves_can_continue(saved, call, moment):
    subprocess.run([sys.executable, "-c", KILLED, str(saved), call, moment])
    checkpointer = run(saved)
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.checkpointables["trainer"].count == 2
    checkpointer.save("model_3", iteration=3)
    assert not list(saved.glob(".*.tmp")) and len(list(saved.glob("*.pth"))) == 3
