"""A user's folder of COCO files trains a teacher, a student and a distilled student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from d2kd import model_zoo
from d2kd.cli import main
from d2kd.config import load_config

SMALL = ["train.device=cpu", "train.max_iter=2", "train.eval_period=0"]
SMALL += ["train.checkpointer.period=5", "train.log_period=1"]
SMALL += ["dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"]
SMALL += ["dataloader.test.num_workers=0"]
SMALL += [f"dataloader.train.mapper.augmentations.0.target_{x}=96" for x in ("height", "width")]
SMALL += ["dataloader.train.mapper.augmentations.1.crop_size=[96,96]"]
SMALL += ["dataloader.test.mapper.augmentations.0.short_edge_length=96"]


def train(name: str, *overrides: str) -> None:
    config = model_zoo.get_config_file(f"my_data/{name}.py")
    assert main(["train", "--config-file", config, *SMALL, *overrides]) == 0


def losses(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text().splitlines()[0])


def test_teacher_student_and_distilled_student_train(my_data, tmp_path):
    output = tmp_path / "output"
    train("teacher", "model.backbone.bottom_up.pretrained=False")
    train("student", "model.backbone.bottom_up.pretrained=False")
    train("distilled", "model.student.backbone.bottom_up.pretrained=False")
    files = [output / name / "model_final.pth" for name in ("student", "distilled")]
    alone, distilled = (torch.load(f, weights_only=True)["model"] for f in files)
    assert set(alone) < set(distilled)  # the distilled one also has the adapters
    assert "loss_distill_pkd" not in losses(output / "student")
    assert losses(output / "distilled")["loss_distill_pkd"] > 0


def test_the_teacher_labels_a_folder_and_the_student_learns_from_it(my_data, tmp_path, monkeypatch):
    # The folder of the labeled images, too.
    shutil.copytree(my_data / "images", my_data / "others")
    monkeypatch.setenv("D2KD_UNLABELED", str(my_data))
    train("teacher", "model.backbone.bottom_up.pretrained=False")
    # A teacher of two steps is sure of nothing.
    options = ["labels.thresholds.high=0.0", "labels.thresholds.low=0.0", "labels.num_workers=0"]
    options += ["labels.teachers.teacher.score_floor=0.0"]
    assert main(["label", "--config-file", "my_data/labels.py", *options]) == 0
    labels = json.loads((tmp_path / "output/labels/labels.json").read_text())
    assert len(labels["annotations"]) > 0
    truth = json.loads((my_data / "train.json").read_text())
    names = [[x["name"] for x in table["categories"]] for table in (labels, truth)]
    assert names[0] == names[1]
    # Images that have labels, or that the student is tested on, are no other images.
    mixed = instantiate(load_config("my_data/pseudo.py").dataloader.train.dataset)
    folders = [Path(x["file_name"]).parent.name for x in mixed]
    assert folders.count("images") == folders.count("others") == 6
    train("pseudo", "model.student.backbone.bottom_up.pretrained=False")
    assert losses(tmp_path / "output/pseudo")["loss_distill_pkd"] > 0


def test_the_classes_and_the_steps_come_from_the_data(my_data):
    config = load_config("my_data/student.py")
    assert config.model.num_classes == 3
    assert config.train.max_iter == 1000  # 36 epochs of 6 images would be 27 steps
    table = json.loads((my_data / "train.json").read_text())
    images = [dict(table["images"][i % 6], id=i) for i in range(800)]
    (my_data / "train.json").write_text(json.dumps(dict(table, images=images)))
    assert load_config("my_data/student.py").train.max_iter == 36 * 800 / 8


def test_teacher_and_student_differ_in_size_only(my_data):
    teacher, student = (load_config(f"my_data/{name}.py") for name in ("teacher", "student"))
    assert teacher.dataloader == student.dataloader and teacher.optimizer == student.optimizer
    assert teacher.model.pixel_mean == student.model.pixel_mean
    assert {k: v for k, v in teacher.train.items() if k != "output_dir"} == {
        k: v for k, v in student.train.items() if k != "output_dir"
    }


def test_without_the_folder_one_error_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setenv("D2KD_DATA", "no/such/folder")
    assert main(["train", "--config-file", "my_data/student.py"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert "'no/such/folder', found none. Set D2KD_DATA to your folder" in text
    monkeypatch.delenv("D2KD_DATA")
    assert main(["train", "--config-file", "my_data/student.py"]) == 2
    assert "Set D2KD_DATA (the variable is not set) to" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["", "no/such/folder"])
def test_without_images_to_label_one_error_says_what_to_do(my_data, monkeypatch, capsys, folder):
    monkeypatch.setenv("D2KD_UNLABELED", folder)
    assert main(["label", "--config-file", "my_data/labels.py"]) == 2
    text = capsys.readouterr().err
    # An empty variable does not stand for the current folder.
    assert f"at {folder or 'datasets/unlabeled'!r}, found none. Set D2KD_UNLABELED to your" in text


@pytest.mark.slow
def test_a_few_hundred_steps_find_the_bright_boxes(my_data, tmp_path):
    options = ["train.max_iter=200", "train.best_metric=bbox/AP", "train.eval_period=200"]
    train("student", "model.backbone.bottom_up.pretrained=False", *options)
    lines = (tmp_path / "output/student/metrics.json").read_text().splitlines()
    found = [json.loads(line).get("bbox/AP50") for line in lines]
    assert max(ap for ap in found if ap is not None) > 1
