"""Files of student and teacher are missed before the data are read."""

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from d2kd import Distiller, FeatureTeacher, Teacher
from d2kd.checks import check_models, check_weights
from d2kd.config import check_config, load_config

ZOO = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def model(teacher=None, student="configs/demo/student.py"):
    return L(Distiller)(student=student, teacher=teacher)


def test_weights_that_are_there_and_urls_pass(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    for path in (str(file), "https://host/weights.pth", "detectron2://a.pkl", "", None, True):
        check_weights("field", path)
    with pytest.raises(FileNotFoundError, match=r"field: expected a file or a URL, found no file"):
        check_weights("field", str(tmp_path))


def test_files_that_a_run_before_this_one_makes_pass(tmp_path):
    first = [str(tmp_path / "first")]
    check_weights("field", str(tmp_path / "first/model_final.pth"), first)
    with pytest.raises(FileNotFoundError, match="field: expected a file"):
        check_weights("field", str(tmp_path / "first2/model_final.pth"), first)
    made = dict(model=str(tmp_path / "first/config.yaml"), weights=str(tmp_path / "first/a.pth"))
    check_models(model(L(Teacher)(**made)), coming=first)


def test_models_that_are_there_pass():
    check_models(OmegaConf.create({"backbone": {}}))
    check_models(model())
    check_models(model(L(Teacher)(model=ZOO, weights="zoo")), evaluates_teacher=True)
    check_models(model(L(Teacher)(model="configs/demo/teacher.py", weights=None)))
    check_models(model(L(FeatureTeacher)(backbone="torchvision/resnet18", weights=True)))


@pytest.mark.parametrize(
    "section, message",
    [
        (model(student="gone.py"), r"expected the path of a \.py .* found 'gone\.py'"),
        (model(L(Teacher)(model="gone.yaml", weights=None)), r"model zoo .* found 'gone\.yaml'"),
        (
            model(L(Teacher)(model=ZOO, weights="gone.pth")),
            r"^model\.teacher\.weights: expected a file or a URL, found no file at 'gone\.pth'",
        ),
        (
            model(L(FeatureTeacher)(backbone="torchvision/resnet18", weights="gone.pth")),
            r"^model\.teacher\.weights: expected a file",
        ),
        (
            model(L(Teacher)(model="configs/demo/teacher.py", weights="zoo")),
            r"weights='zoo': expected `model` to be a name",
        ),
    ],
)
def test_files_that_are_not_there_are_named(section, message):
    with pytest.raises(FileNotFoundError, match=message):
        check_models(section)


@pytest.mark.parametrize(
    "teacher, message",
    [
        (None, r"model: expected a Distiller with a teacher to evaluate, found none"),
        (
            L(FeatureTeacher)(backbone="torchvision/resnet18", weights=None),
            r"model\.teacher: .* found FeatureTeacher, which has no detector to evaluate",
        ),
    ],
)
def test_a_teacher_that_cannot_be_evaluated_is_refused(teacher, message):
    check_models(model(teacher))
    with pytest.raises(ValueError, match=message):
        check_models(model(teacher), evaluates_teacher=True)


def test_a_training_that_checks_its_teacher_evaluates_it():
    cfg = load_config("configs/demo/distill.py", ["train.device=cpu"])
    cfg.model.teacher = L(FeatureTeacher)(backbone="torchvision/resnet18", weights=None)
    cfg.train.teacher_check.images = 1
    with pytest.raises(ValueError, match="no detector to evaluate"):
        check_config(cfg, training=True, teacher=True)
