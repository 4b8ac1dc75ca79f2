"""The web site of the documentation builds, and its first pages work as they are shown."""

import ast
import inspect
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate

import d2kd.methods
from d2kd import Distiller
from d2kd.checkpoint import Checkpointer
from d2kd.config import load_config
from d2kd.methods import FeatureMethod, Method, Methods
from tests.snippets import PAGES, find_snippets
from tests.test_readme import STUDENT

DOCS = Path(__file__).parents[1] / "docs"

# The page of each method, and the headings of each page.
METHODS = {
    "mimic": d2kd.methods.Mimic,
    "fgd": d2kd.methods.FGD,
    "mgd": d2kd.methods.MGD,
    "pkd": d2kd.methods.PKD,
    "cwd": d2kd.methods.CWD,
    "pgd": d2kd.methods.PGD,
    "crosskd": d2kd.methods.CrossKD,
    "rank_mimic": d2kd.methods.RankMimic,
    "pfi": d2kd.methods.PFI,
    "ld": d2kd.methods.LD,
    "uet": d2kd.methods.MCDropout,
}
HEADINGS = (
    "Idea",
    "Equations",
    "Fields",
    "When to use it",
    "What differs from the paper and the released code",
    "Results",
    "In the code",
)


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


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_shown_as_code(page):
    """Right after a list, Markdown takes an indented block for a paragraph of the last item."""
    parser = pytest.importorskip("markdown_it").MarkdownIt()
    tokens = parser.parse((DOCS.parent / page).read_text())
    code = {" ".join(x.content.split()) for x in tokens if x.type in ("code_block", "fence")}
    shell = [x for x in find_snippets(page) if x.kind == "shell"]
    assert not [x.line for x in shell if " ".join(x.text.split()) not in code]


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"(?m)^([\w/*]+)$", (DOCS / "index.md").read_text())
    pages = {
        str(page.relative_to(DOCS).with_suffix(""))
        for page in [*DOCS.glob("*.md"), *DOCS.glob("methods/*.md")]
    } - {"index"}
    # "performance*" also takes performance_gpu, which `make gpu` writes.
    assert pages == {page for page in pages for pattern in listed if fnmatch(page, pattern)}
    assert all(any(fnmatch(page, pattern) for page in pages) for pattern in listed)


def fields(method: type) -> dict:
    """The fields that a method's constructor names itself, and its weight, with their defaults."""
    own = inspect.signature(method.__init__).parameters
    found = {k: p.default for k, p in own.items() if k not in ("self", "shared")}
    weight = inspect.signature(method).parameters.get("weight")
    return found if weight is None else {**found, "weight": weight.default}


def table(text: str) -> dict:
    """The fields and defaults of a page's table."""
    section = text.split("\n## Fields", 1)[1].split("\n## ", 1)[0]
    section = section.split("| field | default |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"(?m)^\| `(\w+)` \| `([^`]+)` \|", section)
    assert len(rows) == len(dict(rows)) == section.count("\n") - 1  # all rows but the ruler
    return {name: ast.literal_eval(default) for name, default in rows}


@pytest.mark.parametrize("page", METHODS)
def test_a_methods_page_has_its_fields_with_their_defaults(page):
    found, expected = (
        {name: (type(default), default) for name, default in x.items()}
        for x in (table((DOCS / f"methods/{page}.md").read_text()), fields(METHODS[page]))
    )
    assert found == expected


def test_the_overview_has_the_fields_of_all_methods():
    assert table((DOCS / "methods.md").read_text()) == {
        k: p.default for k, p in inspect.signature(FeatureMethod).parameters.items()
    }


def test_every_method_has_a_page_with_the_same_headings():
    exported = {
        x for x in map(d2kd.methods.__dict__.get, d2kd.methods.__all__) if inspect.isclass(x)
    }
    assert set(METHODS.values()) == exported - {FeatureMethod, Method, Methods}
    for page, method in METHODS.items():
        text = (DOCS / f"methods/{page}.md").read_text()
        assert tuple(re.findall(r"(?m)^## (.*)$", text)) == HEADINGS, page
        assert f"[`{method.__name__}`](methods/{page}.md)" in (DOCS / "methods.md").read_text()


@pytest.mark.parametrize("page", METHODS)
def test_functions_and_files_that_a_methods_page_names_exist(page):
    text = (DOCS / f"methods/{page}.md").read_text()
    files = re.findall(r"`((?:d2kd|tests)/[\w/]+\.py)`", text)
    assert files and all((DOCS.parent / file).exists() for file in files)
    source = "".join((DOCS.parent / file).read_text() for file in files)
    section = text.split("\n## In the code", 1)[1]
    names = re.findall(r"`(\w+)`", section)
    assert names
    for name in names:
        assert re.search(rf"(?m)^ *(def|class) {name}\b", source), name


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

    snippet = snippets("your_detector.md")[2]
    name = re.search(r'model="([^"]+)"', snippet).group(1)
    assert model_zoo.get_checkpoint_url(name).startswith("https://")


def test_the_snippets_about_pictures(tmp_path):
    config, attention = snippets("pictures.md")
    (tmp_path / "look.py").write_text(config)
    overrides = ["train.pictures.period=1000", "train.writers.wandb={project: digits}"]
    cfg = load_config(str(tmp_path / "look.py"), [*overrides, "train.writers.mlflow={}"])
    assert {"pgd", "pfi", "rm"} < set(cfg.model.methods)
    assert cfg.train.writers == {"wandb": {"project": "digits"}, "mlflow": {}}
    names: dict = {}
    exec(attention, names)
    assert names["heat"].shape == (320, 320)
    assert names["heat"].mean() == pytest.approx(1, abs=0.1)


def test_the_pinned_column_of_the_versions_is_the_file_of_constraints():
    rows = re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \|", (DOCS / "versions.md").read_text())
    table = dict(rows)
    pinned = (DOCS.parent / "docker" / "constraints.txt").read_text()
    versions = dict(re.findall(r"(?m)^(\S+)==(\S+)$", pinned))
    assert f"Python {table['Python']}" in pinned
    for title, names in {
        "PyTorch, torchvision": ("torch", "torchvision"),
        "NumPy, SciPy": ("numpy", "scipy"),
        "OmegaConf, Hydra": ("omegaconf", "hydra-core"),
        "fvcore, iopath": ("fvcore", "iopath"),
        "timm": ("timm",),
        "onnx, onnxruntime": ("onnx", "onnxruntime"),
    }.items():
        assert table[title].split(", ") == [versions[name] for name in names]
