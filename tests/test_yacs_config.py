"""yacs configs of projects, with the function that adds the project's keys."""

import pytest

from d2kd import Distiller, Teacher
from d2kd.loading import build_detector
from d2kd.pseudo.teachers import LabelTeacher
from tests import project, toys

SETUP = "tests.project.add_project_config"


def test_the_yacs_config_of_a_project_builds_with_its_setup(tmp_path):
    path = project.write_config(tmp_path / "project.yaml")
    for setup in (SETUP, project.add_project_config):
        built = build_detector(path, setup=setup)
        assert type(built.model) is project.ProjectNet and built.model.gain == 2.5
        assert built.test_size == (64, 96)


@pytest.mark.parametrize(
    "kind",
    [
        lambda path, **fields: Teacher(path, None, **fields).model,
        lambda path, **fields: LabelTeacher(path, None, ["a", "b", "c"], **fields).model,
        lambda path, **fields: Distiller(student=path, **fields).student,
    ],
)
def test_every_place_of_a_yacs_config_takes_a_setup(tmp_path, kind):
    path = project.write_config(tmp_path / "project.yaml")
    assert type(kind(path, setup=SETUP)) is project.ProjectNet
    with pytest.raises(ValueError, match=r"project\.yaml: .*MODEL\.PROJECT.*give .*setup="):
        kind(path)


def test_a_module_that_only_a_project_registers_is_an_error_that_names_setup(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("MODEL: {META_ARCHITECTURE: NetOfAProject}\nVERSION: 2\n")
    with pytest.raises(ValueError, match=r"other\.yaml: .*NetOfAProject.*setup="):
        build_detector(str(path))


def test_what_the_given_setup_does_not_add_is_not_explained_by_a_missing_setup(tmp_path):
    path = tmp_path / "other.yaml"
    for text in ("MODEL: {NO_SUCH_KEY: 1}", "MODEL: {META_ARCHITECTURE: NoSuchNet}"):
        path.write_text(f"{text}\nVERSION: 2\n")
        with pytest.raises(
            ValueError, match=r"other\.yaml: .*(NO_SUCH_KEY|NoSuchNet).*given setup does not"
        ) as e:
            build_detector(str(path), setup=SETUP)
        assert "give the function" not in str(e.value)


@pytest.mark.parametrize("text", ["", "- a\n", "text\n", "_BASE_: base.yaml\n", "MODEL:\n"])
def test_a_file_without_sections_is_named(tmp_path, text):
    (tmp_path / "base.yaml").write_text("")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml: expected sections with keys, .* found"):
        build_detector(str(path))


@pytest.mark.parametrize(
    "text, message",
    [
        (
            'DATASETS: {TRAIN: ("x",)}\n',
            r"expected the kinds of Detectron2's values, found: .*TRAIN",
        ),
        ("MODEL:\n  MASK_ON: True\n   X: 1\n", r"expected YAML, found: .*\n.*line 3"),
    ],
)
def test_a_file_with_a_mistake_is_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text + "VERSION: 2\n")
    with pytest.raises(ValueError, match=rf"mine\.yaml: {message}"):
        build_detector(str(path))


@pytest.mark.parametrize(
    "setup, message",
    [
        ("no_such_project.add", r"setup: expected the dotted name .*'no_such_project\.add'"),
        ("tests.project.no_such", r"setup: expected the dotted name .*'tests\.project\.no_such'"),
        (3, r"setup: expected a function .* found 3"),
    ],
)
def test_a_setup_that_is_not_there_is_named(tmp_path, setup, message):
    path = project.write_config(tmp_path / "project.yaml")
    with pytest.raises(ValueError, match=message):
        build_detector(path, setup=setup)


@pytest.mark.parametrize("source", ["configs/demo/student.py", toys.retinanet()])
def test_a_setup_without_a_yacs_config_is_refused(source):
    with pytest.raises(ValueError, match="setup: expected the path of a yacs"):
        build_detector(source, setup=SETUP)
