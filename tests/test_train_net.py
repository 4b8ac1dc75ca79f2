"""Run the training script as a user does, on a dataset of six images."""

import argparse
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

import train_net
from d2kd.checkpoint import Checkpointer
from d2kd.engine import Trainer
from d2kd.tools import predict
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

ONLINE = """
from d2kd.data import TwoViewMapper, random_subset
from d2kd.pseudo import DistributionThresholds, MeanTeacher

dataloader.train.dataset = L(random_subset)(
    dataset=dataloader.train.dataset, share=0.5, rest="unlabeled"
)
dataloader.train.mapper = L(TwoViewMapper)(
    is_train=True,
    augmentations=[],
    strong=dataloader.train.mapper.augmentations,
    image_format="RGB",
)
train.init_checkpoint = model.teacher.weights
train.ema = dict(decay=0.9)
train.mean_teacher = L(MeanTeacher)(
    burn_in=1,
    thresholds=L(DistributionThresholds)(objects_per_image=1),
    refit_period=1,
    window=2,
    log_period=1,
)
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


def run_and_kill(monkeypatch, config: Path, folder: Path, *opts: str) -> None:
    """Begin a run that dies before its step 4."""
    step = Trainer.run_step

    def killed(self):
        if self.iter == 4:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Trainer, "run_step", killed)
        run(config, folder, *opts)


def test_an_interruption_says_how_to_go_on(config, tmp_path, monkeypatch):
    new, old = tmp_path / "new", tmp_path / "old"
    run_and_kill(monkeypatch, config, old, "train.checkpointer.period=3")
    saved = f"of step 3 ({old}/model_0000002.pth). The same command with --resume"
    assert f"Stopped at step 4 of 6. The last checkpoint is {saved}" in last_line(old)
    assert (old / "last_checkpoint").read_text() == "model_0000002.pth"
    # A checkpoint that another run has left is not this run's.
    run_and_kill(monkeypatch, config, old, "train.checkpointer.period=100")
    run_and_kill(monkeypatch, config, new, "train.checkpointer.period=100")
    for folder in (old, new):
        assert "Stopped at step 4 of 6. No checkpoint is saved yet" in last_line(folder)


def test_an_interrupted_evaluation_says_how_to_go_on(config, tmp_path, monkeypatch):
    def interrupt(cfg, model):
        raise KeyboardInterrupt

    for period, done in (
        (2, "step 1 of 6. The last checkpoint is of step 2"),
        (0, "the evaluation"),
    ):
        short = [f"train.eval_period={period}", "train.checkpointer.period=2"]
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(train_net, "evaluate", interrupt)
            run(config, tmp_path / str(period), *short)
        assert f"Stopped at {done}" in last_line(tmp_path / str(period))
    assert f"The result is {tmp_path}/0/model_final.pth. The same" in last_line(tmp_path / "0")


def last_line(folder: Path) -> str:
    return (folder / "log.txt").read_text().splitlines()[-1]


def test_resumed_run_equals_uninterrupted_one(config, tmp_path, monkeypatch):
    whole = run(config, tmp_path / "whole")
    assert any(k.startswith("distillation.") for k in whole)
    run_and_kill(monkeypatch, config, tmp_path / "killed")
    resumed = run(config, tmp_path / "killed", resume=True)
    different = {k: (whole[k] - resumed[k]).abs().max() for k in whole}
    assert not any(different.values()), different

    lines = (tmp_path / "killed" / "metrics.json").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert {"loss_distill_fgd", "distill/fgd/ratio", "distill/fgd/relation"} <= set(steps[0])


@pytest.mark.parametrize("opts", [(), ("model.student.test_score_thresh=0.1",)])
def test_the_last_line_is_a_command_that_works(config, tmp_path, opts):
    run(config, tmp_path / "run", "train.max_iter=1", *opts)
    line = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    assert f"Finished: {tmp_path}/run/model_final.pth" in line
    words = line.split("d2kd predict ")[1].split()
    given = {"IMAGES": str(config.parent / "images"), "FOLDER": str(tmp_path / "found")}
    assert predict.main([given.get(word, word) for word in words]) == 0
    assert (words[0] == str(config)) is not bool(opts)


def test_average_is_evaluated_saved_and_resumed_exactly(config, tmp_path, monkeypatch):
    opts = ["train.ema.decay=0.9", "train.best_metric=bbox/AP", "train.eval_period=2"]
    opts.append(f"train.init_checkpoint={config.parent / 'teacher.pth'}")
    run(config, tmp_path / "whole", *opts)
    run_and_kill(monkeypatch, config, tmp_path / "killed", *opts)
    run(config, tmp_path / "killed", *opts, resume=True)

    def weights(folder: str, name: str) -> dict[str, torch.Tensor]:
        return torch.load(tmp_path / folder / f"{name}.pth", weights_only=True)["model"]

    student = LazyConfig.load("configs/demo/student.py").model
    for name in ("final", "best", "ema_final", "ema_best"):
        whole, resumed = (weights(folder, f"student_{name}") for folder in ("whole", "killed"))
        assert all(torch.equal(whole[k], resumed[k]) for k in whole), name
        train_net.instantiate(student).load_state_dict(whole)  # a plain student: strictly
    last = json.loads((tmp_path / "whole" / "metrics.json").read_text().splitlines()[-1])
    assert {"bbox/AP", "ema/bbox/AP"} <= set(last)


@pytest.mark.slow
def test_mean_teacher_resumes_exactly_beside_a_method(config, tmp_path, monkeypatch):
    online = tmp_path / "online.py"
    online.write_text(config.read_text() + ONLINE)
    whole = run(online, tmp_path / "whole")
    run_and_kill(monkeypatch, online, tmp_path / "killed")
    resumed = run(online, tmp_path / "killed", resume=True)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    averages = [
        torch.load(tmp_path / folder / "student_ema_final.pth", weights_only=True)["model"]
        for folder in ("whole", "killed")
    ]
    assert all(torch.equal(averages[0][k], averages[1][k]) for k in averages[0])
    lines = (tmp_path / "whole" / "metrics.json").read_text().splitlines()
    resumed = [json.loads(line) for line in lines[3:]]
    assert max(x.get("mean_teacher/boxes_per_image", 0) for x in resumed) > 0
    assert any({"loss_distill_fgd", "mean_teacher/divergence"} <= set(x) for x in resumed)


def test_mean_teacher_without_a_distiller_is_refused(config, tmp_path):
    online = tmp_path / "online.py"
    online.write_text(config.read_text() + ONLINE + "model = student.model\n")
    with pytest.raises(ValueError, match="model: expected a Distiller, which masks the losses"):
        run(online, tmp_path / "run")


def test_mean_teacher_that_would_never_label_is_refused(config, tmp_path):
    online = tmp_path / "online.py"
    online.write_text(config.read_text() + ONLINE)
    with pytest.raises(ValueError, match=r"burn_in: expected fewer steps than .* found 2"):
        run(online, tmp_path / "run", "train.max_iter=2", "train.mean_teacher.burn_in=2")


def test_student_and_teacher_are_evaluated(config, tmp_path, capsys):
    run(config, tmp_path, eval_teacher=True)
    run(config, tmp_path, f"train.init_checkpoint={config.parent / 'teacher.pth'}", eval_only=True)
    # Teacher and student have the same weights, and thus the same results.
    rows = re.findall(r"copypaste: ([\d.]+,[\d.]+,.*)", (tmp_path / "log.txt").read_text())
    assert len(rows) == 2 and rows[0] == rows[1] and float(rows[0].split(",")[0]) > 0


def test_a_missing_teacher_is_named_before_the_data_are_read(config, tmp_path, monkeypatch):
    monkeypatch.setattr(train_net, "audit_in_all_processes", lambda *_: pytest.fail("read them"))
    for flags in ({}, {"eval_teacher": True}):
        with pytest.raises(FileNotFoundError, match=r"model.teacher.weights: .* 'gone.pth'"):
            run(config, tmp_path, "model.teacher.weights=gone.pth", **flags)


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
    with pytest.raises(FileNotFoundError, match=r"init_checkpoint: expected a file or a URL"):
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


def test_a_run_that_diverges_leaves_no_checkpoint_that_is_not_finite(config, tmp_path, monkeypatch):
    step = Trainer.run_step

    def spoils(self):
        step(self)
        if self.iter == 4:  # the weights break after the checkpoint of step 3
            next(self.model.parameters()).data.fill_(float("nan"))

    every_step = ["train.log_period=1000", "train.checkpointer.period=1"]
    with monkeypatch.context() as m, pytest.raises(FloatingPointError) as error:
        m.setattr(Trainer, "run_step", spoils)
        run(config, tmp_path, *every_step)
    assert "model_0000004.pth: expected finite values" in str(error.value)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    log = (tmp_path / "log.txt").read_text()
    assert "Stopped: checkpoint model_0000004.pth" in log and "Traceback" not in log
    # The corrected run goes on.
    assert run(config, tmp_path, *every_step, resume=True)


def test_a_model_that_broke_in_the_last_step_is_not_evaluated(config, tmp_path, monkeypatch):
    step = Trainer.run_step

    def spoils(self):
        step(self)
        if self.iter == 5:
            next(self.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "run_step", spoils)
    with pytest.raises(FloatingPointError, match=r"model_0000005.pth: expected finite values"):
        run(config, tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "Not evaluated: expected finite weights" in log and "copypaste" not in log


def test_a_loss_that_is_not_finite_is_found_in_its_own_step(config, tmp_path, monkeypatch):
    forward = train_net.Distiller.forward

    def breaks(self, batch):
        losses = forward(self, batch)
        if self.training and (self.loss_weights.progress or 0) >= 0.5:
            losses["loss_cls"] = losses["loss_cls"] * float("inf")
        return losses

    monkeypatch.setattr(train_net.Distiller, "forward", breaks)
    late = ["train.log_period=1000", "train.checkpointer.period=2"]
    with pytest.raises(
        FloatingPointError, match=r"iteration 3: .* found loss_cls = inf.*\.(png|jpg)"
    ):
        run(config, tmp_path, *late)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    kept = torch.load(tmp_path / "non_finite_iteration3_rank0.pt", weights_only=True)
    assert len(kept["batch"]) == 2 and kept["batch"][0]["image"].dtype == torch.uint8


def test_fewer_steps_than_are_done_and_a_finished_run_are_said(config, tmp_path):
    run(config, tmp_path)
    with pytest.raises(ValueError, match=r"train.max_iter to be at least the 6 steps .* found 4"):
        run(config, tmp_path, "train.max_iter=4", resume=True)
    final = (tmp_path / "model_final.pth").stat().st_mtime_ns
    run(config, tmp_path, resume=True)
    assert "the run is finished, all 6 steps are done" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == final


def test_a_new_run_keeps_the_result_of_the_finished_one_in_its_folder(config, tmp_path):
    short = ["train.max_iter=2", "train.eval_period=0"]
    run(config, tmp_path, *short)
    first = (tmp_path / "model_final.pth").read_bytes()
    # The new run may start from the weights that it replaces.
    run(config, tmp_path, *short, f"train.init_checkpoint={tmp_path}/model_final.pth")
    assert (tmp_path / "previous_1/model_final.pth").read_bytes() == first
    assert (tmp_path / "model_final.pth").read_bytes() != first
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert "init_checkpoint: ''" in (tmp_path / "previous_1/config.yaml").read_text()
    assert "which this new run replaces" not in (tmp_path / "log.txt").read_text()
    for folder in (tmp_path, tmp_path / "previous_1"):  # a curve each
        lines = (folder / "metrics.json").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2]
    run(config, tmp_path, "train.max_iter=3", "train.eval_period=0", resume=True)  # more steps
    assert not (tmp_path / "previous_2").exists()


def test_a_new_run_in_the_folder_of_an_unfinished_one_says_what_it_replaces(config, tmp_path):
    run(config, tmp_path, "train.max_iter=2", "train.eval_period=0")
    (tmp_path / "model_final.pth").unlink()
    run(config, tmp_path, "train.max_iter=2", "train.eval_period=0")
    assert "has checkpoints of an earlier run, which" in (tmp_path / "log.txt").read_text()


def test_masks_that_boxes_are_computed_from_are_missed_before_training(config, tmp_path):
    fields = ["use_instance_mask=True", "recompute_boxes=True"]
    with pytest.raises(ValueError, match=r"recompute_boxes: expected a mask .*, found 0 for"):
        run(config, tmp_path, *(f"+dataloader.train.mapper.{field}" for field in fields))
    assert not (tmp_path / "metrics.json").exists()


def test_a_config_that_is_refused_leaves_no_folder(config, tmp_path):
    with pytest.raises(ValueError, match=r"expected a registered dataset, found 'none'"):
        run(config, tmp_path / "run", "dataloader.train.dataset.names=none")
    assert not (tmp_path / "run").exists()


def test_warnings_of_the_checks_are_in_the_log(config, tmp_path, monkeypatch):
    def check(*_, **__):
        logging.getLogger("d2kd.checks").warning("the schedule ends early")

    monkeypatch.setattr(train_net, "check_config", check)
    run(config, tmp_path, "train.max_iter=1", "train.eval_period=0")
    assert (tmp_path / "log.txt").read_text().count("the schedule ends early") == 1


def test_values_that_the_optimizer_refuses_are_named(config, tmp_path):
    with pytest.raises(ValueError, match=r"optimizer: expected values .* found: Invalid beta"):
        run(config, tmp_path, "optimizer.betas=[2,3]")


def test_a_run_that_was_killed_before_its_final_checkpoint_gets_it(config, tmp_path):
    whole = run(config, tmp_path, "train.eval_period=0")
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    resumed = run(config, tmp_path, "train.eval_period=0", resume=True)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_evaluation_is_strict(config, tmp_path):
    weights = torch.load(config.parent / "teacher.pth", weights_only=True)["model"]
    del weights["head.cls_score.bias"]
    torch.save({"model": weights}, tmp_path / "incomplete.pth")
    with pytest.raises(ValueError, match=r"incomplete.pth does not fit .* 1 missing"):
        run(config, tmp_path, f"train.init_checkpoint={tmp_path}/incomplete.pth", eval_only=True)


def test_a_distillers_checkpoint_is_evaluated_as_its_student(config, tmp_path):
    run(config, tmp_path, "train.max_iter=2", "train.eval_period=0")
    opts = [f"train.init_checkpoint={tmp_path}/model_final.pth"]
    run(config, tmp_path / "evaluated", *opts, eval_only=True)
    log = (tmp_path / "evaluated" / "log.txt").read_text()
    assert re.search(r"RetinaNet: \d+ tensors matched, 0 missing, 0 unexpected", log)


def test_a_second_run_in_one_folder_is_refused_and_changes_nothing(config, tmp_path):
    hold = "import sys, time; from d2kd.run_lock import lock_run_folder\n" + (
        f"with lock_run_folder({str(tmp_path)!r}): print('holds', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"holds\n"
        with pytest.raises(ValueError, match=rf"in use by process {first.pid} on "):
            run(config, tmp_path)
        first.kill()
    assert [p.name for p in tmp_path.iterdir()] == [".run_lock"]


def test_pictures_do_not_change_the_training_and_reach_tensorboard(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    opts = ["train.eval_period=0", "train.log_period=2"]
    plain = run(config, tmp_path / "plain", *opts)
    pictures = ["train.pictures.period=2", "train.pictures.images=1"]
    drawn = run(config, tmp_path / "drawn", *opts, *pictures)
    assert plain.keys() == drawn.keys()
    assert all(torch.equal(plain[k], drawn[k]) for k in plain)
    events = EventAccumulator(str(tmp_path / "drawn"))
    events.Reload()
    assert [event.step for event in events.Images("pictures/0")] == [1, 3, 5]


def test_a_writer_that_is_not_installed_is_said_before_the_training(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"train.writers.wandb: .* Run `pip install wandb`"):
        run(config, tmp_path, "train.writers.wandb={project:p}")
    assert not list(tmp_path.glob("*.json"))
