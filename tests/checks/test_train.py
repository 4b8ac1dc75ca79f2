"""Names, kinds and ranges of `train`."""

import pytest
import torch

from d2kd import model_zoo
from d2kd.checks import check_train
from d2kd.config import check_config, load_config
from d2kd.values import check_device

STUDENT = "configs/demo/student.py"


@pytest.fixture
def train():
    return model_zoo.get_config("common/train.py").train


def test_the_defaults_pass(train):
    check_train(train)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("amp.enabled", "no", "train.amp.enabled: expected True or False, found 'no'"),
        ("amp.enabled", 1, "train.amp.enabled: expected True or False, found 1"),
        ("amp.dtype", "fp16", "train.amp.dtype: expected float16 or bfloat16, found 'fp16'"),
        ("amp", True, "train.amp: expected the fields enabled, dtype, found True"),
        ("best_metric", 3, "train.best_metric: expected a metric such as 'bbox/AP' or '', found 3"),
        ("best_metric", "ema/bbox/AP", "without 'ema/', found 'ema/bbox/AP'. Write 'bbox/AP'"),
        ("max_iter", 4.0, "train.max_iter: expected a whole number >= 1, found 4.0. Write 4."),
        ("max_iter", "abc", "train.max_iter: expected a whole number >= 1, found 'abc'"),
        ("max_iter", 0, "train.max_iter: expected a whole number >= 1, found 0"),
        ("max_iter", None, "train.max_iter: expected a whole number >= 1, found None"),
        ("checkpointer.period", 0, "train.checkpointer.period: expected a whole number >= 1"),
        ("checkpointer.max_to_keep", 0, "max_to_keep: expected a whole number >= 1 or None"),
        ("log_period", -1, "train.log_period: expected a whole number >= 1, found -1"),
        ("eval_period", -1, "train.eval_period: expected a whole number >= 0, found -1"),
        ("accumulate", 0, "train.accumulate: expected a whole number >= 1, found 0"),
        ("clip_grad_norm", float("nan"), "train.clip_grad_norm: expected a finite number >= 0"),
        ("teacher_check.min_ap", 101, "train.teacher_check.min_ap: expected a number >= 0 and <="),
        ("pictures.period", -1, "train.pictures.period: expected a whole number >= 0, found -1"),
        ("pictures.images", 0, "train.pictures.images: expected a whole number >= 1, found 0"),
        ("pictures.threshold", 2, "train.pictures.threshold: expected a number >= 0 and <= 1"),
        ("writers.wandb", True, "train.writers.wandb: expected a dict of options, {} for none"),
        ("writers", ["wandb"], "train.writers: expected the fields wandb, mlflow, found ['wandb']"),
        ("writers", {"comet": {}}, "train.writers.comet: expected a field of train.writers (wandb"),
        ("seed", "x", "train.seed: expected a whole number, found 'x'"),
        ("seed", 10**20, "train.seed: expected a number <= 4294967295, found 1000000000"),
        ("output_dir", "", "train.output_dir: expected a text that is not empty, found ''"),
        ("init_checkpoint", 3, "train.init_checkpoint: expected a path"),
        ("device", "cpuu", "train.device: expected a device such as cuda, cuda:1 or cpu"),
        ("device", 0, "train.device: expected a device such as cuda, cuda:1 or cpu, found 0"),
        ("ddp.broadcast_buffers", "off", "train.ddp.broadcast_buffers: expected True or False"),
        ("ddp.static_graph", "yes", "train.ddp.static_graph: expected True or False"),
        ("log_period", "???", "train.log_period: expected a value, found none"),
        ("log_period", "${nowhere}", "train.log_period: expected a value, found Interpolation"),
    ],
)
def test_wrong_values_are_named(train, field, value, message):
    *parents, name = field.split(".")
    section = train
    for parent in parents:
        section = section[parent]
    section[name] = value
    with pytest.raises(ValueError) as error:
        check_train(train)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "field, value",
    [
        ("eval_period", 0),
        ("checkpointer.max_to_keep", None),
        ("seed", -1),
        ("writers.mlflow", {"run_name": "a"}),
        ("writers.wandb", {}),
        ("init_checkpoint", None),
        ("device", "cuda:3"),
        ("ddp.static_graph", True),
        ("checkpointer.file_prefix", "run"),
        ("cudnn_benchmark", True),
    ],
)
def test_right_values_pass(train, field, value):
    *parents, name = field.split(".")
    (train[parents[0]] if parents else train)[name] = value
    check_train(train)


@pytest.mark.parametrize(
    "text, message",
    [
        ("train.max_itr = 3", r"train.max_itr: expected a field of train .*mean max_iter"),
        ("train.amp.enable = True", r"train.amp.enable: .*Did you mean enabled"),
        ("train.ddp.find_unused = True", r"train.ddp.find_unused: .*mean find_unused_parameters"),
        ("train.mine = 3", r"train.mine: .*Fields of your own belong into another section"),
    ],
)
def test_a_misspelled_field_in_a_file_stops_as_on_the_command_line(tmp_path, text, message):
    path = tmp_path / "config.py"
    path.write_text(
        "from d2kd import model_zoo\n"
        "cfg = model_zoo.get_config('demo/student.py')\n"
        f"model, dataloader, train = cfg.model, cfg.dataloader, cfg.train\n{text}\n"
    )
    with pytest.raises(ValueError, match=message):
        load_config(str(path))


def test_values_of_overrides_are_checked_when_they_are_loaded():
    with pytest.raises(ValueError, match=r"train.amp.enabled: expected True or False, found 'no'"):
        load_config(STUDENT, ["train.amp.enabled=no"])
    with pytest.raises(ValueError, match=r"train: expected a section with fields, found 3"):
        load_config(STUDENT, ["train=3"])


def test_gpus_count_from_zero(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("train.device", "cuda:1")
    with pytest.raises(ValueError, match=r"train.device: expected one of the 2 GPUs .*'cuda:2'"):
        check_device("train.device", "cuda:2")


def test_a_loader_that_is_no_section_is_named_with_its_place():
    cfg = load_config(STUDENT, ["dataloader.train=null"])
    with pytest.raises(ValueError, match=r"dataloader.train: expected a section with fields"):
        check_config(cfg, training=True)
