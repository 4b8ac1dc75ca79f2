"""`d2kd evaluate`: which detector it evaluates, and that the checkpoint must fit."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2kd.checkpoint import Checkpointer
from d2kd.config import load_config
from d2kd.tools import evaluate
from tests import toys

ROOT = Path(__file__).parents[2]

CONFIG = f"""
from detectron2.config import LazyCall as L, LazyConfig
from d2kd import Distiller, Teacher
from d2kd.methods import FGD, Methods

student = LazyConfig.load({str(ROOT / "configs/demo/student.py")!r})
dataloader, train = student.dataloader, student.train
model = L(Distiller)(
    student=student.model,
    teacher=L(Teacher)(model={str(ROOT / "configs/demo/student.py")!r}, weights="teacher.pth"),
    methods=L(Methods)(fgd=L(FGD)()),
)
train.device = "cpu"
train.output_dir = "output"
dataloader.train.dataset.names = dataloader.test.dataset.names = "toy_evaluate"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    register_coco_instances("toy_evaluate", {}, *map(str, toys.coco_dataset(tmp_path / "images")))
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "student.py").write_text(CONFIG.replace("model = L(", "distiller = L(") + "\n"
                                         "model = student.model\n")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    # It would put handlers on loggers that the other tests share.
    monkeypatch.setattr(evaluate, "setup_logger", lambda **_: None)
    detector = instantiate(LazyConfig.load(str(ROOT / "configs/demo/student.py")).model)
    torch.nn.init.zeros_(detector.head.cls_score.bias)  # otherwise no score passes the threshold
    Checkpointer(detector, ".").save("teacher")
    distiller = instantiate(load_config("config.py").model)
    distiller.load_state_dict(detector.state_dict(), strict=False)
    Checkpointer(distiller, ".").save("model_final")
    yield tmp_path
    DatasetCatalog.remove("toy_evaluate")
    MetadataCatalog.remove("toy_evaluate")


def figures(text: str) -> list[str]:
    return re.findall(r"copypaste: ([\d.]+,[\d.]+,.*)", text)


def test_student_plain_or_distilled_and_teacher(folder, caplog):
    caplog.set_level("INFO")
    runs = [
        ["student.py", "teacher.pth"],
        ["student.py", "model_final.pth"],
        ["config.py", "model_final.pth", "dataloader.test.batch_size=2"],
        ["config.py", "--teacher", "dataloader.test.batch_size=2"],
        ["config.py", "teacher.pth", "--teacher"],
    ]
    rows = []
    for argv in runs:
        assert evaluate.main(argv) == 0
        output = caplog.text
        caplog.clear()
        rows += figures(output)
        if "--teacher" not in argv:
            assert f"0 missing, 0 unexpected, 0 of another shape from {argv[1]}" in output
    assert len(rows) == 5 and len(set(rows)) == 1 and float(rows[0].split(",")[0]) > 0
    assert not (folder / "output").exists()  # a training's files are not touched


def test_weights_must_fit(folder):
    weights = torch.load("teacher.pth", weights_only=True)["model"]
    weights.pop("head.cls_score.bias")
    torch.save({"model": weights}, "less.pth")
    with pytest.raises(ValueError, match=r"expected all tensors to match, found .* 1 missing"):
        evaluate.main(["config.py", "less.pth"])


@pytest.mark.parametrize(
    "argv, error, message",
    [
        (["gone.pth"], FileNotFoundError, "the checkpoint: expected a file .* 'gone.pth'"),
        (["gone.pth", "--teacher"], FileNotFoundError, "model.teacher.weights: .* 'gone.pth'"),
        (["--teacher", "model.teacher=null"], ValueError, "a teacher to evaluate, found none"),
        (["teacher.pth", "--teacher", "model.teacher=null"], ValueError, "evaluate, found none"),
    ],
)
def test_what_is_missing_is_named_before_the_data_are_read(
    folder, monkeypatch, argv, error, message
):
    monkeypatch.setattr(evaluate, "audit_in_all_processes", lambda *_: pytest.fail("read the data"))
    with pytest.raises(error, match=message):
        evaluate.main(["config.py", *argv])


def test_a_teacher_without_a_detector_is_refused(folder, monkeypatch):
    monkeypatch.setattr(evaluate, "audit_in_all_processes", lambda *_: pytest.fail("read the data"))
    features = "from d2kd import FeatureTeacher\nmodel.teacher = L(FeatureTeacher)(" + (
        "backbone='torchvision/resnet18', weights=None)\n"
    )
    Path("features.py").write_text(CONFIG + features)
    with pytest.raises(ValueError, match=r"FeatureTeacher, which has no detector to evaluate"):
        evaluate.main(["features.py", "--teacher"])


def test_something_must_be_evaluated(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["config.py", "train.device=cpu"])
    assert stop.value.code == 2
    assert "expected --weights or --teacher, found neither" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["config.py", "teacher.pth", "--weights", "student.pth"])
    assert "expected one checkpoint, found teacher.pth and student.pth" in capsys.readouterr().err
    Path("config.py").write_text(CONFIG + "del dataloader.evaluator\n")
    with pytest.raises(ValueError, match=r"config.py: expected dataloader.evaluator, found none"):
        evaluate.main(["config.py", "teacher.pth"])
    with pytest.raises(ValueError, match=r"config.py: expected dataloader.evaluator, found none"):
        evaluate.main(["config.py", "--weights", "teacher.pth"])
