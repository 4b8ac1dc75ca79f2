"""`d2kd doctor`: what it says of configs that work, and of configs that do not."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import OmegaConf
from packaging.specifiers import SpecifierSet
from torch import nn

from d2kd.checkpoint import Checkpointer
from d2kd.methods import FGD
from d2kd.readers import get_reader
from d2kd.tools import doctor
from d2kd.tools.doctor import cost, detectors, machine
from d2kd.tools.doctor.report import Line, Report, show_duration
from tests import toys

ROOT = Path(__file__).parents[2]

CONFIG = f"""
from detectron2.config import LazyCall as L, LazyConfig
from d2kd import Distiller, Teacher
from d2kd.methods import FGD, LD, PGD, Methods
from tests import toys
from tests.tools.test_doctor import detector

demo = LazyConfig.load({str(ROOT / "configs/demo/student.py")!r})
dataloader, optimizer, lr_multiplier, train = (
    demo[k] for k in ("dataloader", "optimizer", "lr_multiplier", "train")
)
model = L(Distiller)(
    student=L(toys.retinanet)(width=4, input_format="RGB", num_classes=3),
    teacher=L(Teacher)(
        model=L(toys.retinanet)(width=8, channels=16, num_classes=3), weights="teacher.pth"
    ),
    methods=L(Methods)(fgd=L(FGD)(levels=["p3", "p4"]), pgd=L(PGD)()),
)
train.device = "cpu"
train.max_iter = 1000
train.output_dir = "output"
dataloader.train.dataset.names = dataloader.test.dataset.names = "toy_doctor"
dataloader.train.total_batch_size = 2
"""


def detector(strides):
    """A teacher whose pyramid has other strides than `toys.pyramid`."""
    model = toys.retinanet()
    model.backbone._out_feature_strides = dict(
        zip(model.backbone._out_feature_strides, strides, strict=True)
    )
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    files = toys.coco_dataset(tmp_path / "images", classes=3)
    register_coco_instances("toy_doctor", {}, *map(str, files))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    Checkpointer(toys.retinanet(width=8, channels=16), ".").save("teacher")
    (tmp_path / "config.py").write_text(CONFIG)
    yield tmp_path
    DatasetCatalog.remove("toy_doctor")
    MetadataCatalog.remove("toy_doctor")


def examine(capsys, *argv: str, config: str = "config.py") -> tuple[int, list[Line]]:
    """Exit status and lines; a line that was wrapped is one again."""
    status = doctor.main([config, *argv])
    output = capsys.readouterr().out
    assert len(output.splitlines()) <= 40
    lines: list[Line] = []
    for line in output.splitlines():
        if line.startswith(" "):
            lines[-1] = lines[-1]._replace(text=f"{lines[-1].text} {line.strip()}")
        else:
            level, rest = line.split(maxsplit=1)
            assert level in ("ok", "warning", "problem")
            lines.append(Line(level, rest[:12].strip(), rest[13:]))
    return status, lines


def problems(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.level == "problem" and line.subject != "result"]


def test_a_config_that_works(folder, capsys):
    before = sorted(folder.rglob("*"))
    status, lines = examine(capsys)
    assert status == 0 and not problems(lines)
    text = {line.subject: line.text for line in lines}
    assert "Detectron2" in text["versions"] and torch.__version__ in text["versions"]
    assert text["train data"].startswith("toy_doctor: 6 images, 6 boxes of 3 classes; 4 images")
    assert text["evaluator"] == "COCOEvaluator on toy_doctor"
    tensors = len(toys.retinanet(width=8, channels=16).state_dict())
    assert f"{tensors} tensors matched, 0 missing, 0 unexpected" in text["teacher"]
    assert text["classes"] == "student 3, teacher 3, toy_doctor 3"
    assert text["fgd"] == "FGD: p3, p4 (strides 8, 16), 8 to 16 channels by 1x1 adapters"
    assert text["pgd"].startswith("PGD: p3, p4, p5, p6, p7 (strides 8, 16, 32, 64, 128), 8 to 16")
    assert text["batch"].startswith("2 images of up to 64 x 64 pixels with 2 boxes")
    assert (
        "s for a student step, peak memory of the process"
        in [line.text for line in lines if line.subject == "student"][-1]
    )
    assert "s for a distilled step" in text["distilled"]
    assert "1000 steps (distilled steps)" in text["training"]
    assert sorted(p for p in folder.rglob("*") if "__pycache__" not in p.parts) == before
    assert logging.root.manager.disable < logging.CRITICAL


def test_a_teacher_without_a_detector(folder, capsys):
    text = (folder / "config.py").read_text()
    start = text.index("    teacher=")
    teacher = '    teacher=L(FeatureTeacher)(backbone="torchvision/resnet18", weights=None),\n'
    methods = "    methods=L(Methods)(fgd=L(FGD)()),\n)\n"
    text = text[:start] + teacher + methods + text[text.index("train.device") :]
    text = text.replace("import Distiller, Teacher", "import Distiller, FeatureTeacher")
    (folder / "features.py").write_text(text)
    status, lines = examine(capsys, config="features.py")
    assert status == 0 and not problems(lines)
    found = {line.subject: line.text for line in lines}
    assert found["teacher"].startswith("torchvision/resnet18: weights=None, so no trained")
    assert found["classes"] == "student 3, toy_doctor 3"
    assert "p3 from res3, p4 from res4, p5 from res5 (strides 8, 16, 32)" in found["fgd"]


ONLINE = """
from d2kd.pseudo import MeanTeacher
train.ema = dict(decay=0.9)
train.mean_teacher = L(MeanTeacher)(burn_in=1)
"""


def test_a_mean_teacher_without_a_weak_view(folder, capsys):
    (folder / "online.py").write_text((folder / "config.py").read_text() + ONLINE)
    status, lines = examine(capsys, "--no-step", config="online.py")
    (problem,) = problems(lines)
    assert status == 1 and problem.subject == "config"
    assert "mapper: expected d2kd.data.TwoViewMapper" in problem.text
    assert "found DatasetMapper" in problem.text


def test_a_student_that_cannot_be_read_trains_alone():
    report, model = Report(), LazyCall(nn.Linear)(in_features=1, out_features=1)
    cfg = OmegaConf.create({"model": {"student": model, "methods": None}, "train": {}})
    assert detectors.check_student(report, cfg) == (None, False)
    (line,) = report.lines
    assert line.level == "warning" and line.text.startswith("Linear: it trains without methods")


def test_defects_of_the_data_are_shown(folder, capsys):
    path = folder / "images" / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["bbox"][2] = float("nan")
    path.write_text(json.dumps(content))
    status, lines = examine(capsys, "--no-step")
    shown = [(line.level, line.text) for line in lines if line.subject == "audit"]
    assert status == 1 and [level for level, _ in shown[:2]] == ["problem", "warning"]
    assert "expected finite numbers, found 1 of 6 boxes" in shown[0][1]
    assert "1 of 5 boxes have a width or height of 0 or less" in shown[1][1]


def test_a_detector_alone(folder, capsys):
    Path("alone.py").write_text(CONFIG + "model = model.student\n")
    status, lines = examine(capsys, config="alone.py")
    assert status == 0 and not problems(lines)
    assert "(student steps)" in {line.subject: line.text for line in lines}["training"]


def test_the_machine_alone(capsys, monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    assert "versions" in output and "devices" in output and "the load is 99.0" in output


def test_missing_weights_do_not_stop_the_other_checks(folder, capsys):
    status, lines = examine(capsys, "model.teacher.weights=gone.pth")
    (problem,) = problems(lines)
    assert status == 1 and problem.subject == "teacher"
    assert "expected a checkpoint at 'gone.pth', found no file" in problem.text
    assert {"fgd", "pgd", "distilled", "training"} <= {line.subject for line in lines}


def test_weights_of_another_detector(folder, capsys):
    status, lines = examine(capsys, "model.teacher.model.width=6")
    (problem,) = problems(lines)
    assert status == 1 and problem.subject == "teacher"
    assert "expected all tensors to match" in problem.text and "of another shape" in problem.text


def test_unregistered_dataset(folder, capsys):
    status, lines = examine(capsys, "dataloader.train.dataset.names=toy_doctr")
    (problem,) = problems(lines)
    assert status == 1 and problem.subject == "train data"
    assert "found 'toy_doctr'. Did you mean toy_doctor" in problem.text
    assert [line.text for line in lines if line.subject == "step"] == [
        "no step is measured, because of the problems above"
    ]


def test_missing_and_broken_images(folder, capsys):
    (folder / "images" / "2.png").write_bytes(b"nothing")
    _, lines = examine(capsys)
    assert all("images/2.png" in p.text for p in problems(lines)) and len(problems(lines)) == 2
    (folder / "images" / "2.png").unlink()
    _, lines = examine(capsys)
    assert all("found no file" in p.text for p in problems(lines)) and len(problems(lines)) == 2


def test_evaluator_of_other_data(folder, capsys):
    _, lines = examine(capsys, "dataloader.evaluator.dataset_name=demo_val")
    (problem,) = problems(lines)
    assert problem.subject == "evaluator" and "toy_doctor" in problem.text


def test_other_numbers_of_classes(folder, capsys):
    status, lines = examine(capsys, "model.student.num_classes=2")
    (problem,) = [p for p in problems(lines) if p.subject == "classes"]
    assert status == 1 and problem.text.startswith("student 2, teacher 3, toy_doctor 3: ")
    assert "toy_doctor has 3, expected at most the student's 2" in problem.text
    assert "the teacher has 3, expected the student's 2" in problem.text


def test_no_common_stride(folder, capsys):
    text = CONFIG.replace(
        '    methods=L(Methods)(fgd=L(FGD)(levels=["p3", "p4"])',
        "    methods=L(Methods)(fgd=L(FGD)()",
    )
    text += "model.teacher.model = L(detector)(strides=[9, 18, 36, 72, 144])\n"
    Path("config.py").write_text(text)
    status, lines = examine(capsys, "model.teacher.weights=null")
    assert status == 1
    found = {p.subject: p.text for p in problems(lines)}
    assert "with at least one common stride" in found["fgd"]
    assert "no distilled step is measured" in " ".join(line.text for line in lines)


def test_initial_checkpoint(folder, capsys):
    status, lines = examine(capsys, "train.init_checkpoint=gone.pth")
    (problem,) = problems(lines)
    assert status == 1 and "train.init_checkpoint: expected a file" in problem.text
    student = toys.retinanet(width=4)
    torch.save({"model": student.backbone.bottom_up.state_dict()}, "other.pth")
    _, lines = examine(capsys, "train.init_checkpoint=other.pth")
    assert any("tensors are in other.pth" in line.text for line in lines)


def test_counters_of_batch_norm_are_no_initial_weights(tmp_path):
    torch.save({"model": {"x.y": torch.zeros(1)}}, tmp_path / "other.pth")
    report = Report()
    assert not detectors._load(report, nn.BatchNorm2d(2), str(tmp_path / "other.pth"), "student")
    assert "student; 0 of its 5 tensors are in" in report.lines[-1].text


def test_no_gpu(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, lines = examine(capsys, "train.device=cuda")
    (problem,) = problems(lines)
    assert status == 1 and "found 'cuda' but no GPU" in problem.text


def test_output_that_cannot_be_written(folder, capsys, monkeypatch):
    text = {line.subject: line.text for line in examine(capsys, "--no-step")[1]}
    assert "can be written" in text["output"]
    Path("file").write_text("")
    _, lines = examine(capsys, "--no-step", "train.output_dir=file/run")
    assert "expected a folder, found a file" in problems(lines)[0].text

    def refuse(**_):  # a test may run as root, who may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    _, lines = examine(capsys, "--no-step", "train.output_dir=runs/a")
    assert "expected a folder that can be written, found" in problems(lines)[0].text
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "override", ["train.max_iter=abc", "optimizer.lr=abc", "train.device=cpuu"]
)
def test_wrong_values_are_problems(folder, capsys, override):
    status, lines = examine(capsys, "--no-step", override)
    field, value = override.split("=")
    assert status == 1 and f"found '{value}'" in problems(lines)[0].text
    assert field in problems(lines)[0].text


def test_unknown_field_and_missing_config(folder, capsys):
    status, lines = examine(capsys, "model.methods.fgd.wieght=3")
    assert status == 1 and "Did you mean weight" in problems(lines)[0].text
    status, lines = examine(capsys, config="gone.py")
    assert status == 1 and "gone.py" in problems(lines)[0].text
    assert {line.subject for line in lines} >= {"versions", "devices", "threads"}


def test_no_step_and_several_processes(folder, capsys):
    status, lines = examine(capsys, "--no-step")
    assert status == 0 and "batch" not in {line.subject for line in lines}
    _, lines = examine(capsys, "--num-gpus", "2")
    assert {line.subject: line.text for line in lines}["batch"].startswith("1 images")
    _, lines = examine(capsys, "--num-gpus", "3")
    assert "expected a multiple of the 3 processes, found 2" in problems(lines)[0].text


def test_annotations_beyond_the_classes(folder, capsys):
    path = folder / "images" / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = []
    path.write_text(json.dumps(content))
    _, lines = examine(capsys)
    assert any(p.subject == "train data" for p in problems(lines))


# Parts.


@pytest.mark.parametrize(
    ("versions", "python", "pkg_resources", "needs", "expected"),
    [
        ({"torch": "2.4.1", "torchvision": "0.19.1"}, (3, 12), True, "==2.4.1", None),
        ({"torch": "2.4.1+cu121", "torchvision": "0.19.1"}, (3, 12), True, "==2.4.1", None),
        # Since 0.29, a release of torchvision works with several of PyTorch.
        ({"torch": "2.15.0+cu132", "torchvision": "0.29.2"}, (3, 13), True, ">=2.14.0", None),
        ({"torch": "2.4.1", "torchvision": "0.18.0"}, (3, 12), True, "==2.3.0", "PyTorch==2.3.0"),
        ({"torch": "2.4.1", "torchvision": "built by hand"}, (3, 12), True, "", None),
        ({"torch": "1.13.1", "numpy": "1.26"}, (3, 10), True, "", None),
        ({"torch": "2.2.0", "numpy": "2.1.0"}, (3, 12), True, "", "NumPy 1"),
        ({"torch": "2.4.0"}, (3, 13), True, "", "needs PyTorch 2.5"),
        ({"torch": "2.9.0", "detectron2": "0.6"}, (3, 12), False, "", "setuptools<81"),
        ({}, (3, 12), True, "==2.4.1", None),
    ],
)
def test_pairs_of_versions(versions, python, pkg_resources, needs, expected):
    found = machine.version_problems(versions, python, pkg_resources, needs)
    assert len(found) == (expected is not None) and (not expected or expected in found[0])


def test_what_torchvision_needs_is_what_pip_has_checked():
    needs = machine._torchvision_needs()
    assert needs and torch.__version__.split("+")[0] in SpecifierSet(needs)


def test_what_cannot_be_imported_is_named(monkeypatch, capsys):
    def fail(name):
        raise ImportError("no such library\nand more")

    monkeypatch.setattr(machine.importlib, "import_module", fail)
    assert doctor.main([]) == 1
    assert "PyTorch cannot be imported: no such library" in capsys.readouterr().out


def test_pairs_are_described():
    method = FGD(levels={"p3": "p4"})
    method.setup(get_reader(toys.retinanet()), get_reader(toys.retinanet()))
    text = detectors.describe_pairs(method.pairs, method.adapters)
    assert text == "p3 from p4 (strides 8 from 16), 8 channels, no adapter"


@pytest.mark.parametrize(
    ("clock", "seconds"),
    [
        ([0, 5, 5, 6, 6, 8, 8, 9.5], 1.0),
        ([0, 40, 40, 43], 3.0),  # the warm-up compiled the teacher; one more step is measured
        ([0, 5, 5, 11], 6.0),  # more than ten seconds have passed
    ],
)
def test_seconds_of_a_step_are_those_of_the_fastest_after_the_first(monkeypatch, clock, seconds):
    times = iter(clock)  # begin and end of each step
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(cost.Trainer, "run_step", lambda self: None)
    model = toys.retinanet()
    trainer = cost.Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0))
    found = cost.measure_step(trainer, [], torch.device("cpu"))
    assert found.seconds == seconds and found.memory > 2**20
    assert next(times, None) is None  # no further step


def test_durations():
    given = (0.25, 40, 130, 7300, 200_000)
    assert [show_duration(s) for s in given] == ["0.2 s", "40 s", "2.2 min", "2.0 h", "2.3 days"]


def test_a_long_message_is_wrapped_and_cut(capsys):
    report = Report()
    with report.check("x"):
        raise RuntimeError("word " * 500 + "\n\nthe whole config")
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 12 and "the whole config" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_levels_without_a_partner_are_named():
    student, teacher = toys.retinanet(), detector([8, 16, 32, 64, 256])
    method = FGD()
    method.setup(get_reader(student), get_reader(teacher))
    assert detectors.unpaired_levels(method, get_reader(student)) == ["p7"]
    chosen = FGD(levels=["p3"])
    chosen.setup(get_reader(student), get_reader(teacher))
    assert detectors.unpaired_levels(chosen, get_reader(student)) == []
