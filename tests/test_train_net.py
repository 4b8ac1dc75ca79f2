"""Run the training script as a user does, on a dataset of six images."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

import train_net
from d2kd.checkpoint import Checkpointer
from d2kd.engine import Trainer
from tests import toys

CONFIG = """
from detectron2.config import LazyCall as L, LazyConfig
from d2kd import Distiller, Teacher
from d2kd.methods import FGD, MCDropout, Methods

student = LazyConfig.load("configs/demo/student.py")
dataloader, lr_multiplier, optimizer, train = (
    student[k] for k in ("dataloader", "lr_multiplier", "optimizer", "train")
)
model = L(Distiller)(
    student=student.model,
    teacher=L(Teacher)(model="configs/demo/student.py", weights="{weights}"),
    methods=L(Methods)(fgd=L(FGD)(uncertainty=L(MCDropout)())),
)
train.device = "cpu"
train.max_iter = 6
train.log_period = 1
train.checkpointer.period = 3
dataloader.train.dataset.names = dataloader.test.dataset.names = "toy_boxes"
dataloader.train.total_batch_size = dataloader.test.batch_size = 2
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    register_coco_instances("toy_boxes", {}, *map(str, toys.coco_dataset(folder / "images")))
    torch.manual_seed(5)
    teacher = train_net.instantiate(train_net.load_config("configs/demo/student.py").model)
    torch.nn.init.zeros_(teacher.head.cls_score.bias)  # otherwise no score exceeds the threshold
    Checkpointer(teacher, str(folder)).save("teacher")
    path = folder / "config.py"
    path.write_text(CONFIG.format(weights=folder / "teacher.pth"))
    yield path
    DatasetCatalog.remove("toy_boxes")
    MetadataCatalog.remove("toy_boxes")


def run(config: Path, output: Path, *opts: str, **flags) -> dict[str, torch.Tensor]:
    args = dict(config_file=str(config), resume=False, eval_only=False, eval_teacher=False)
    opts = [f"train.output_dir={output}", *opts]
    train_net.main(argparse.Namespace(**{**args, **flags}, opts=opts))
    final = output / "model_final.pth"
    return torch.load(final, weights_only=True)["model"] if final.exists() else {}


def test_resumed_run_equals_uninterrupted_one(config, tmp_path, monkeypatch):
    whole = run(config, tmp_path / "whole")
    assert any(k.startswith("distillation.") for k in whole)

    step = Trainer.run_step

    def killed(self):
        if self.iter == 4:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Trainer, "run_step", killed)
        run(config, tmp_path / "killed")
    resumed = run(config, tmp_path / "killed", resume=True)
    different = {k: (whole[k] - resumed[k]).abs().max() for k in whole}
    assert not any(different.values()), different

    lines = (tmp_path / "killed" / "metrics.json").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert {"loss_distill_fgd", "distill/fgd/ratio", "distill/fgd/relation"} <= set(steps[0])


def test_student_and_teacher_are_evaluated(config, tmp_path, capsys):
    run(config, tmp_path, eval_teacher=True)
    run(config, tmp_path, f"train.init_checkpoint={config.parent / 'teacher.pth'}", eval_only=True)
    # Teacher and student have the same weights, and thus the same results.
    rows = re.findall(r"copypaste: ([\d.]+,[\d.]+,.*)", (tmp_path / "log.txt").read_text())
    assert len(rows) == 2 and rows[0] == rows[1] and float(rows[0].split(",")[0]) > 0


def test_nothing_to_evaluate_is_an_error(config, tmp_path):
    with pytest.raises(ValueError, match=r"train.init_checkpoint: expected a checkpoint"):
        run(config, tmp_path, eval_only=True)


def test_teacher_that_fails_its_proof_stops_the_run(config, tmp_path):
    proof = ["train.teacher_check.images=4", "train.teacher_check.min_ap=90"]
    with pytest.raises(ValueError, match=r"teacher: expected AP >= 90 on 4 validation images"):
        run(config, tmp_path, *proof)
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_accumulation_and_clipping_work(config, tmp_path, dtype):
    weights = run(
        config,
        tmp_path,
        "train.amp.enabled=True",
        f"train.amp.dtype={dtype}",
        "train.accumulate=2",
        "train.clip_grad_norm=35",
        "train.max_iter=2",
        "train.eval_period=0",
    )
    assert all(torch.isfinite(v).all() for v in weights.values())


def test_two_processes_give_the_losses_of_one(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    alone = [sys.executable, "-W", "ignore", "-m", "tests.ranks", str(one)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(alone, check=True)
    subprocess.run([*torchrun, "-m", "tests.ranks", str(two), "torchrun"], check=True)
    one, two = json.loads(one.read_text()), json.loads(two.read_text())
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_config_that_is_refused_leaves_the_files_of_an_earlier_run(config, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.yaml").write_text("of an earlier run")
    with pytest.raises(ValueError, match=r"optimizer.lr: expected a number >= 0, found 'abc'"):
        run(config, output, "optimizer.lr=abc")
    with pytest.raises(ValueError, match=r"init_checkpoint: expected a file or a URL, found no"):
        run(config, output, "train.init_checkpoint=gone.pth")
    assert (output / "config.yaml").read_text() == "of an earlier run"


def test_a_mistake_in_the_script_is_plain(config):
    """The script itself, as its users call it."""
    command = [sys.executable, str(Path(train_net.__file__)), str(config), "train.log_period=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "arning" not in line and line.strip()]
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    assert lines[-2:] == [
        "train_net.py stopped (--debug shows where in the code).",
        "train.log_period: expected a whole number >= 1, found 0.",
    ]
