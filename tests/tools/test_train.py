"""`d2kd train` as train_net.py, and the config that it writes for people who have none."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model

import train_net
from d2kd import Distiller
from d2kd.checkpoint import Checkpointer
from d2kd.config import check_config, load_config
from d2kd.methods import FGD, PKD, recommended
from d2kd.tools import train, write_config
from tests import project, toys

ROOT = Path(__file__).parents[2]

STUDENT = f"""
from detectron2.config import LazyConfig

config = LazyConfig.load({str(ROOT / "configs/demo/student.py")!r})
dataloader, lr_multiplier, model, optimizer, train = (
    config[k] for k in ("dataloader", "lr_multiplier", "model", "optimizer", "train")
)
dataloader.train.dataset.names = dataloader.test.dataset.names = "toy_write"
dataloader.train.total_batch_size = dataloader.test.batch_size = 2
train.device = "cpu"
train.max_iter = 2
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    register_coco_instances("toy_write", {}, *map(str, toys.coco_dataset(tmp_path / "images")))
    place = tmp_path / "mine"
    place.mkdir()
    (place / "student.py").write_text(STUDENT)
    (place / "teacher.py").write_text(STUDENT)
    Checkpointer(instantiate(LazyConfig.load(str(place / "teacher.py")).model), str(place)).save(
        "teacher"
    )
    monkeypatch.chdir(tmp_path)
    yield place
    DatasetCatalog.remove("toy_write")
    MetadataCatalog.remove("toy_write")


def arguments(*more: str, method: str = "fgd", **changed: str) -> list[str]:
    given = dict(student="mine/student.py", teacher="mine/teacher.py", weights="mine/teacher.pth")
    given = {**given, "method": method, **changed}
    return [x for flag, value in given.items() for x in (f"--{flag}", value)] + list(more)


def test_train_is_train_net():
    link = ROOT / "d2kd" / "tools" / "train.py"
    assert link.resolve() == ROOT / "train_net.py"
    assert link.is_symlink() and not link.readlink().is_absolute()


def test_with_a_config_it_passes_all_flags_on(monkeypatch):
    calls = []
    monkeypatch.setattr(write_config, "launch", lambda main, args: calls.append((main, args)))
    argv = ["--config-file", "c.py", "--num-gpus", "2", "--resume", "--eval-only", "a.b=1", "c=2"]
    assert write_config.main(argv) == 0
    ((main, args),) = calls
    assert main is train.main
    expected = vars(train_net.argument_parser().parse_args(argv))
    assert {k: v for k, v in vars(args).items() if k in expected} == expected


def test_ten_lines_as_in_the_readme(folder, capsys):
    assert write_config.main(arguments("--inherit", "--config-only")) == 0
    path = folder / "student_fgd.py"
    assert str(path) in capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert len([line for line in lines if line]) <= 12
    assert "from .student import dataloader, lr_multiplier, optimizer, train, model as student" in (
        lines
    )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_written_config_loads_from_any_folder(folder, elsewhere, tmp_path, monkeypatch):
    path = tmp_path / "other" / "x.py" if elsewhere else folder / "student_fgd.py"
    more = ["--write-to", "other/x.py"] if elsewhere else []
    more += ["--config-only", "--output", "here", "--inherit", "--dataset-train", "a", "b"]
    assert write_config.main(arguments(*more)) == 0
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    cfg = load_config(str(path))
    assert cfg.train.output_dir == str(tmp_path / "here") and cfg.train.max_iter == 2
    assert list(cfg.dataloader.train.dataset.names) == ["a", "b"]
    model = instantiate(cfg.model)
    assert isinstance(model, Distiller) and isinstance(model.distillation.fgd, FGD)
    # It has the teacher's weights and has inherited its head.
    weights = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    assert torch.equal(model.teacher.model.head.cls_score.weight, weights["head.cls_score.weight"])
    assert torch.equal(model.head.cls_score.weight, weights["head.cls_score.weight"])


def write_yacs(path: Path) -> str:
    path.write_text(
        """MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res3, res4, res5], DEPTH: 18, RES2_OUT_CHANNELS: 64}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 16}
  RETINANET: {IN_FEATURES: [p3, p4, p5, p6, p7], NUM_CLASSES: 10, NUM_CONVS: 1}
DATASETS: {TRAIN: [toy_write], TEST: []}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {FORMAT: RGB, MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 1, STEPS: []}
VERSION: 2
"""
    )
    return str(path)


def test_a_student_in_a_yacs_config(folder, tmp_path):
    path = write_yacs(folder / "yacs.yaml")
    config = get_cfg()
    config.merge_from_file(path)
    Checkpointer(build_model(config), str(folder)).save("yacs")
    given = dict(student="mine/yacs.yaml", teacher="mine/yacs.yaml", weights="mine/yacs.pth")
    argv = arguments("--output", "run", "--inherit", method="recommended", **given)
    assert write_config.main(argv) == 0  # it also trains
    text = (folder / "yacs_recommended.py").read_text()
    assert f"_config = load_student_config({path!r})" in text
    assert "recommended()" in text and "input_format" not in text
    cfg = load_config("mine/yacs_recommended.py")
    check_config(cfg)
    assert cfg.dataloader.train.mapper.image_format == "RGB" and cfg.train.max_iter == 1
    # The checkpoint of the distilled training is one of Detectron2's own model.
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    student = {k: x for k, x in weights.items() if not k.startswith("distillation.")}
    build_model(config).load_state_dict(student, strict=False)
    assert student.keys() == build_model(config).state_dict().keys()
    # Its saved config needs neither the file nor the student's own config.
    Path(path).unlink()
    saved = load_config(str(tmp_path / "run" / "config.yaml"))
    assert type(instantiate(saved.model.student)).__name__ == "RetinaNet"


def test_setup_adds_the_keys_of_a_project(folder):
    path = project.write_config(folder / "project.yaml")
    Path(path).write_text(Path(path).read_text() + "DATASETS: {TRAIN: [toy_write], TEST: []}\n")
    setup = ["--setup", "tests.project.add_project_config"]
    argv = arguments("--config-only", *setup, student="mine/project.yaml", method="pkd")
    assert write_config.main(argv) == 0
    cfg = load_config("mine/project_pkd.py")
    assert type(instantiate(cfg.model.student)).__name__ == "ProjectNet"
    argv = arguments("--config-only", *setup, teacher="mine/project.yaml", method="fgd")
    assert write_config.main(argv) == 0
    teacher = load_config("mine/student_fgd.py").model.teacher
    assert teacher.setup == "tests.project.add_project_config" and teacher.model == path
    with pytest.raises(ValueError, match=r"--setup: expected the file of a yacs config .* found"):
        write_config.main(arguments("--config-only", *setup))


def test_a_two_stage_student_in_a_yacs_config_gets_the_recipe(folder):
    (folder / "rcnn.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: GeneralizedRCNN}\nDATASETS: {TRAIN: [toy_write]}\nVERSION: 2\n"
    )
    argv = arguments("--config-only", student="mine/rcnn.yaml", method="recommended")
    assert write_config.main(argv) == 0
    assert "methods=recommended()," in (folder / "rcnn_recommended.py").read_text()


def test_each_method_has_a_name_and_loads(folder):
    known = write_config.method_classes()
    names = {"mimic", "fgd", "mgd", "pkd", "cwd", "pgd", "ld", "rank_mimic", "pfi"}
    assert names <= known.keys()
    for name, cls in known.items():
        assert write_config.main(arguments("--config-only", method=name)) == 0
        cfg = load_config(f"mine/student_{name}.py")
        assert isinstance(instantiate(cfg.model.methods)[name], cls)
        check_config(cfg)


def test_without_a_method_it_is_the_recommended_recipe(folder):
    argv = arguments("--config-only")
    at = argv.index("--method")
    assert write_config.main(argv[:at] + argv[at + 2 :]) == 0
    path = folder / "student_recommended.py"
    assert "    methods=recommended()," in path.read_text().splitlines()
    cfg = load_config(str(path))
    check_config(cfg)
    assert cfg.model.methods == recommended()
    assert write_config.main(arguments("--config-only", method="recommended")) == 0


@pytest.mark.parametrize(
    "teacher",
    ["COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", "COCO-Detection/faster_rcnn_R_50_FPN_1x.py"],
)
def test_a_teacher_with_proposals_gets_the_recipe_on_features(folder, teacher, monkeypatch):
    monkeypatch.setattr(write_config, "zoo_weights", lambda name: None)
    given = dict(teacher=teacher, weights="zoo", method="recommended")
    if teacher.endswith(".py"):
        path = folder / "rcnn.py"
        path.write_text(
            "from detectron2 import model_zoo\n"
            "from detectron2.config import LazyCall as L\n"
            "model = model_zoo.get_config('common/models/mask_rcnn_fpn.py').model\n"
        )
        given.update(teacher=str(path), weights="mine/teacher.pth")
    assert write_config.main(arguments("--config-only", **given)) == 0
    assert "methods=recommended()," in (folder / "student_recommended.py").read_text()


def test_a_student_with_proposals_gets_the_recipe_on_features(folder):
    (folder / "student.py").write_text(
        STUDENT
        + "from detectron2 import model_zoo\n"
        + "model = model_zoo.get_config('common/models/mask_rcnn_fpn.py').model\n"
    )
    assert write_config.main(arguments("--config-only", method="recommended")) == 0
    assert "methods=recommended()," in (folder / "student_recommended.py").read_text()


def test_a_detector_that_does_not_say_its_channel_order(folder):
    (folder / "student.py").write_text(STUDENT + "del model.input_format\n")
    assert write_config.main(arguments("--config-only")) == 0
    cfg = load_config("mine/student_fgd.py")
    assert cfg.model.input_format == "RGB"  # the demo's images
    check_config(cfg)


def test_zoo_teacher(folder):
    argv = arguments(
        "--config-only", teacher="COCO-Detection/retinanet_R_101_FPN_3x.yaml", weights="zoo"
    )
    assert write_config.main(argv) == 0
    teacher = load_config("mine/student_fgd.py").model.teacher
    assert teacher.weights == "zoo" and teacher.model.startswith("COCO-Detection")


@pytest.mark.parametrize("name", ["retinanet_R_50_FPN_1x.yaml", "retinanet_R_50_FPN_1x.py"])
def test_zoo_student(folder, tmp_path, name):
    given = dict(student=f"COCO-Detection/{name}", method="recommended", weights="zoo")
    given["teacher"] = "COCO-Detection/retinanet_R_101_FPN_3x.yaml"
    assert write_config.main(arguments("--config-only", **given)) == 0
    # There is no folder of the student's own: the config is in the current one.
    path = tmp_path / "retinanet_R_50_FPN_1x_recommended.py"
    cfg = load_config(str(path), ["train.device=cpu"])
    check_config(cfg)
    names = cfg.dataloader.train.dataset.names
    assert names in ("coco_2017_train", ["coco_2017_train"])
    expected = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model
    student = instantiate(cfg.model.student)
    assert student.state_dict().keys() == instantiate(expected).state_dict().keys()


def test_own_text_is_never_lost(folder, capsys):
    argv = arguments("--config-only")
    path = folder / "student_fgd.py"
    assert write_config.main(argv) == 0
    before = path.stat().st_mtime_ns
    assert write_config.main(argv) == 0 and path.stat().st_mtime_ns == before
    assert "has this config already" in capsys.readouterr().out
    path.write_text(path.read_text() + "train.max_iter = 9\n")
    with pytest.raises(FileExistsError, match=r"expected no file or the same config, found"):
        write_config.main(argv)
    assert path.read_text().endswith("train.max_iter = 9\n")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"method": "fdg"}, ValueError, r"--method: expected .*fgd.*, found 'fdg'. Did you mean"),
        ({"student": "no.py"}, FileNotFoundError, r"expected the path of .*, found 'no.py'"),
        ({"teacher": "no.py"}, FileNotFoundError, r"expected the path of .*, found 'no.py'"),
        ({"weights": "no.pth"}, FileNotFoundError, r"--weights: expected a file, found none"),
        ({"weights": "zoo"}, FileNotFoundError, r"weights='zoo': expected `model` to be a name"),
        ({"student": "mine/bare.py"}, ValueError, r"found no lr_multiplier, optimizer in"),
        (
            {"student": "mine/teacher.pth"},
            ValueError,
            r"--student: expected a LazyConfig \(.py\) or a y",
        ),
        ({"student": "mine/pkd.py"}, ValueError, r"found a distiller's"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(folder, changed, error, message):
    (folder / "bare.py").write_text(STUDENT + "del lr_multiplier, optimizer\n")
    assert write_config.main(arguments("--config-only", "--write-to", "mine/pkd.py")) == 0
    before = sorted(folder.iterdir())
    with pytest.raises(error, match=message):
        write_config.main(arguments("--config-only", **changed))
    assert sorted(p for p in folder.iterdir() if p.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected --config-file, or --student"),
        (["--student", "s.py", "--method", "fgd"], "missing: --teacher, --weights"),
        (["--config-file", "c.py", "--student", "s.py"], "found --student too"),
    ],
)
def test_arguments_that_do_not_fit_together(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        write_config.main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_it_trains_with_what_it_wrote(folder, tmp_path):
    argv = arguments("--output", "run", "--dataset-train", "toy_write", "train.max_iter=1")
    assert write_config.main([*argv, "train.eval_period=0"]) == 0
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert weights["iteration"] == 0 and any("distillation.fgd" in k for k in weights["model"])
    assert PKD.__name__ not in (folder / "student_fgd.py").read_text()


@pytest.mark.slow
def test_as_a_module():
    call = [sys.executable, "-m", "d2kd.tools.train", "--help"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and re.search(r"--eval-teacher", done.stdout)
