"""The wheel in a fresh environment that has Detectron2: the command and the configs are there."""

import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import d2kd

ROOT = Path(__file__).parents[1]
SOURCES = ("d2kd", "configs", "train_net.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")

# find_spec("pip") would do it too, but setuptools takes it for a running pip: its own distutils
# would then be switched off for all tests of this process.
pytestmark = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="pip")), reason="this environment has no pip"
)


def run(*command: str | Path, cwd: Path) -> str:
    outside = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in outside}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # From a copy, so that the build leaves nothing in the checkout and finds nothing old there.
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--wheel-dir", source / "dist", ".", cwd=source)
    (path,) = (source / "dist").glob("d2kd-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The folder with the programs of a new environment with the wheel and nothing else of ours.

    A .pth file adds the packages of this environment, Detectron2 among them. An editable d2kd of
    this environment is not among them: its own .pth file is not read.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", asked, cwd=folder).strip())
    here = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    here += [x for x in sys.path if x.endswith(("site-packages", "dist-packages"))]
    (site / "packages.pth").write_text("\n".join(dict.fromkeys(here)) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, "--ignore-installed", "--no-compile", wheel, cwd=folder)
    return folder / "bin"


def test_what_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    train = zipfile.ZipFile(wheel).read("d2kd/tools/train.py")
    assert train == (ROOT / "train_net.py").read_bytes()  # the file, not a link to it
    assert {"d2kd/py.typed", "d2kd/cli.py", "d2kd/threads.py"} <= names
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py")}
    assert {f"d2kd/model_zoo/{name}" for name in configs} <= names
    assert "d2kd/model_zoo/configs/demo/teacher.pth" in names
    weights = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.safetensors")}
    assert {f"d2kd/model_zoo/{name}" for name in weights} <= names
    assert "d2kd/model_zoo/students.json" in names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "d2kd").rglob("*.py")}
    assert {name for name in modules if "__pycache__" not in name} <= names
    strangers = {name.split("/")[0] for name in names} - {"d2kd"}
    assert all(name.endswith(".dist-info") for name in strangers), strangers


def test_its_page_is_the_readme(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (x for x in archive.namelist() if x.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.get_payload(decode=True).decode().strip() == readme.strip()


def test_command(environment, tmp_path):
    assert "d2kd COMMAND" in run(environment / "d2kd", "--help", cwd=tmp_path)
    version = run(environment / "d2kd", "--version", cwd=tmp_path)
    assert version == f"d2kd {d2kd.__version__}\n"
    assert "--config-only" in run(environment / "d2kd", "train", "--help", cwd=tmp_path)


def test_doctor(environment, tmp_path):
    output = run(environment / "d2kd", "doctor", cwd=tmp_path)
    assert f"d2kd {d2kd.__version__}" in output and "no problem" in output.splitlines()[-1]


def test_configs(environment, tmp_path):
    code = (
        "import d2kd; from d2kd import model_zoo\n"
        "cfg = model_zoo.get_config('gfl/gfl_R_50_FPN_1x_bs16_fgd.py')\n"
        "print(d2kd.__file__); print(cfg.model.methods.keys())"
    )
    place, methods = run(environment / "python", "-c", code, cwd=tmp_path).splitlines()[-2:]
    assert Path(place).is_relative_to(environment.parent) and "fgd" in methods
