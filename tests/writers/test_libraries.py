"""Weights & Biases and MLflow as event writers: with fakes, and with the real ones if installed."""

import random
import sys
import types

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, TensorboardXWriter

from d2kd.writers import MLflowWriter, WandbWriter, default_writers
from d2kd.writers.libraries import check_writers

PIXELS = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)


class FakeRun:
    """Of both libraries; `log` has what was logged."""

    def __init__(self, options: dict):
        self.options, self.log_, self.ended = options, [], None
        self.id = options.get("id") or options.get("run_id") or "new"
        self.info = types.SimpleNamespace(run_id=self.id)

    def define_metric(self, name, step_metric):
        self.step_metric = step_metric

    def log(self, data):
        self.log_.append(data)

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def fakes(monkeypatch):
    """Runs of the two libraries, in the order in which they were started."""
    runs = []

    def start(**options):
        if "unknown" in options:
            raise TypeError("unexpected keyword argument 'unknown'")
        random.random()  # a library may use them
        runs.append(FakeRun(options))
        return runs[-1]

    wandb, mlflow = types.ModuleType("wandb"), types.ModuleType("mlflow")
    wandb.init, wandb.Image = start, lambda pixels: ("image", pixels.shape)
    mlflow.start_run = start
    mlflow.log_metrics = lambda metrics, step: runs[-1].log({**metrics, "step": step})
    mlflow.log_image = lambda pixels, key, step: runs[-1].log({key: pixels.shape, "step": step})
    mlflow.end_run = lambda status: runs[-1].finish(status)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return runs


def write_two_steps(writer) -> None:
    with EventStorage(0) as storage:
        for step, loss in enumerate((3.0, 2.0)):
            storage.iter = step
            storage.put_scalar("total_loss", loss, smoothing_hint=False)
            if step:
                storage.put_scalar("bbox/AP-a(b)", 7.0, smoothing_hint=False)
                storage.put_image("pictures/0", PIXELS)
            writer.write()
        storage.clear_images()
        writer.write()  # nothing is new
        writer.close()


def test_wandb_gets_scalars_and_pictures_with_their_steps(fakes, tmp_path):
    write_two_steps(WandbWriter(str(tmp_path), {"project": "p"}))
    (run,) = fakes
    assert run.options["project"] == "p" and run.options["dir"] == str(tmp_path)
    assert run.step_metric == "iteration" and run.ended == 0
    assert run.log_ == [
        {"total_loss": 3.0, "iteration": 0},
        {"total_loss": 2.0, "bbox/AP-a(b)": 7.0, "iteration": 1},
        {"pictures/0": ("image", (2, 4, 3)), "iteration": 1},
    ]


def test_mlflow_gets_names_that_it_takes(fakes, tmp_path):
    write_two_steps(MLflowWriter(str(tmp_path), {"run_name": "r"}))
    (run,) = fakes
    assert run.options == {"run_name": "r"} and run.ended == "FINISHED"
    assert run.log_ == [
        {"total_loss": 3.0, "step": 0},
        {"total_loss": 2.0, "bbox/AP-a_b_": 7.0, "step": 1},
        {"pictures/0": (2, 4, 3), "step": 1},
    ]


@pytest.mark.parametrize("kind, field", [(WandbWriter, "id"), (MLflowWriter, "run_id")])
def test_a_resumed_training_goes_on_in_its_run(fakes, tmp_path, kind, field):
    kind(str(tmp_path), {})
    (tmp_path / f"{kind.name}_run_id.txt").write_text("abc\n")
    kind(str(tmp_path), {}, resume=True)
    kind(str(tmp_path), {})
    assert [run.options.get(field) for run in fakes] == [None, "abc", None]
    assert (tmp_path / f"{kind.name}_run_id.txt").read_text() == "new\n"


@pytest.mark.parametrize("kind, ended", [(WandbWriter, 1), (MLflowWriter, "FAILED")])
def test_a_training_that_fails_is_marked(fakes, tmp_path, kind, ended):
    writer = kind(str(tmp_path), {})
    try:
        raise FloatingPointError
    except FloatingPointError:
        writer.close()
    assert fakes[0].ended == ended


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_options_that_a_library_does_not_take_are_named(fakes, tmp_path, name):
    with pytest.raises(ValueError, match=rf"train.writers.{name}: expected options .*'unknown'"):
        default_writers(str(tmp_path), 10, {name: {"unknown": 1}})


def test_a_library_changes_no_random_numbers(fakes, tmp_path):
    random.seed(1)
    expected = random.random()
    random.seed(1)
    default_writers(str(tmp_path), 10, {"wandb": {}, "mlflow": {}})
    assert random.random() == expected


def test_the_writer_that_removes_the_pictures_is_the_last(fakes, tmp_path):
    writers = default_writers(str(tmp_path), 10, {"wandb": {}, "mlflow": {}})
    kinds = [type(writer) for writer in writers]
    assert {WandbWriter, MLflowWriter} < set(kinds) and kinds[-1] is TensorboardXWriter
    assert len(default_writers(str(tmp_path), 10, {"wandb": None, "mlflow": None})) == 3


@pytest.mark.parametrize("name, package", [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_library_is_one_plain_line(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as error:
        check_writers({"wandb": None, "mlflow": None, name: {}})
    assert str(error.value) == (
        f"train.writers.{name}: expected the package {name}, found none. Run `pip install "
        f"{package}`. (Missing: {name}.)"
    )


def test_what_is_left_out_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    check_writers({"wandb": None, "mlflow": None})


def test_with_the_real_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    writer = MLflowWriter(str(tmp_path), {})
    write_two_steps(writer)
    run = mlflow.get_run((tmp_path / "mlflow_run_id.txt").read_text().strip())
    assert run.data.metrics == {"total_loss": 2.0, "bbox/AP-a_b_": 7.0}
    assert run.info.status == "FINISHED" and run.info.run_name == str(tmp_path)
    assert list((tmp_path / "store").rglob("*.png"))


@pytest.mark.slow
def test_with_the_real_wandb(tmp_path):
    pytest.importorskip("wandb")
    writer = WandbWriter(str(tmp_path), {"mode": "offline", "project": "p"})
    write_two_steps(writer)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"total_loss" in log.read_bytes() and b"iteration" in log.read_bytes()
    assert list(tmp_path.rglob("*.png"))
