"""The web site of the documentation builds, and its first pages work as they are shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate

from d2kd import Distiller
from d2kd.checkpoint import Checkpointer
from d2kd.config import load_config
from tests.test_readme import STUDENT

DOCS = Path(__file__).parents[1] / "docs"


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_builds_without_warnings_and_without_broken_links(tmp_path):
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api.html").read_text()
    assert 'id="d2kd.Distiller"' in api and 'id="d2kd.methods.FGD"' in api


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"(?m)^(\w+)$", (DOCS / "index.md").read_text()))
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} == listed


def test_the_first_detector_detects():
    names: dict = {}
    exec(snippets("start.md")[0], names)
    assert len(names["detector"].classes) == 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's student, teacher and the config of the page."""
    (tmp_path / "my_distilled.py").write_text(snippets("your_detector.md")[0])
    (tmp_path / "my_student.py").write_text(STUDENT.format(depth=18))
    (tmp_path / "my_teacher.py").write_text(STUDENT.format(depth=34))
    monkeypatch.chdir(tmp_path)
    Checkpointer(instantiate(LazyConfig.load("my_teacher.py").model), ".").save("my_teacher")
    return tmp_path


def test_your_detector_is_distilled_and_then_loads_without_d2kd(folder):
    model = instantiate(load_config("my_distilled.py", ["model.methods.pkd.weight=3"]).model)
    assert isinstance(model, Distiller) and model.distillation.pkd.weight == 3
    (folder / "output/my_distilled").mkdir(parents=True)
    Checkpointer(model, "output/my_distilled").save("model_final")
    last = snippets("your_detector.md")[-1]
    assert "d2kd" not in last
    names: dict = {}
    exec(last, names)
    trained = model.student.state_dict()
    assert all((v == trained[k]).all() for k, v in names["detector"].state_dict().items())


def test_a_teacher_of_the_model_zoo_names_a_config_that_exists():
    from detectron2 import model_zoo

    snippet = snippets("your_detector.md")[1]
    name = re.search(r'model="([^"]+)"', snippet).group(1)
    assert model_zoo.get_checkpoint_url(name).startswith("https://")
