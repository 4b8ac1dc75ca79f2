"""`d2kd.model_zoo` finds every config by name, from any folder, and packages hold all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from d2kd import model_zoo
from d2kd.config import load_config

ROOT = Path(__file__).parents[1]
NAME = "gfl/gfl_R_50_FPN_1x_bs16_fgd.py"


def test_the_configs_are_those_at_the_top():
    found = model_zoo.get_config_file(NAME)
    assert os.path.samefile(found, ROOT / "configs" / NAME)
    assert model_zoo.get_config(NAME).model.methods.fgd.tau == 0.5


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("gfl/gfl_R_50_FPN_1x_bs16_fdg.py", NAME),
        ("gfl_R_50_FPN_1x_bs16_fgd", NAME),  # without folder and suffix
        ("demo/teacher.pth", "demo/teacher.py"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name, nearest):
    with pytest.raises(FileNotFoundError, match=rf"found '{name}'\. Did you mean .*{nearest}"):
        model_zoo.get_config(name)


def test_a_name_like_none_is_told_without_a_guess():
    with pytest.raises(FileNotFoundError, match=r"expected .* found 'xyz'\.$"):
        model_zoo.get_config_file("xyz")


def test_the_list_has_all_configs_and_no_shared_parts(my_data):
    names = model_zoo.list_configs()
    assert names == sorted(names) and NAME in names and "pseudo/coco/labels.py" in names
    assert not any(name.startswith("common/") for name in names)
    for name in names:
        sections = LazyConfig.load(str(ROOT / "configs" / name)).keys()
        assert {"model", "train", "dataloader"} <= sections or "labels" in sections, name


def strings(cfg):
    if OmegaConf.is_dict(cfg):
        keys = [key for key in cfg if not OmegaConf.is_interpolation(cfg, key)]
        return [text for key in keys for text in strings(cfg[key])]
    if OmegaConf.is_list(cfg):
        return [text for item in cfg for text in strings(item)]
    return [cfg] if isinstance(cfg, str) else []


def test_files_of_ours_are_found_from_any_folder(tmp_path, monkeypatch, my_data):
    monkeypatch.chdir(tmp_path)
    for name in model_zoo.list_configs():
        for text in strings(model_zoo.get_config(name)):
            assert not text.startswith("configs/"), (name, text)
            if text.startswith(str(ROOT)):
                assert os.path.isfile(text), (name, text)
    distiller = instantiate(load_config(model_zoo.get_config_file("demo/distill.py")).model)
    assert type(distiller.teacher.model).__name__ == "RetinaNet"  # whose weights have been loaded


def test_the_readme_shows_how_to_change_a_recipe(tmp_path):
    snippets = re.findall(
        r"```python\n(.*?)```", (ROOT / "configs/README.md").read_text(), re.DOTALL
    )
    (snippet,) = [x for x in snippets if "my_train" in x]
    (tmp_path / "my.py").write_text(snippet)
    cfg, recipe = (
        load_config(str(tmp_path / "my.py")),
        load_config(model_zoo.get_config_file("retinanet/retinanet_R_50_FPN_2x_fgd.py")),
    )
    assert cfg.dataloader.train.dataset.names == "my_train"
    recipe.dataloader.train.dataset.names = "my_train"
    assert cfg == recipe


@pytest.mark.slow
def test_wheel_and_source_distribution_hold_all_configs(tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files", "configs"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    if not tracked:
        pytest.skip("needs git and a checkout")
    ignored = shutil.ignore_patterns(".*", "output", "build", "*.egg-info", "__pycache__", "demo-*")
    source = shutil.copytree(ROOT, tmp_path / "source", symlinks=True, ignore=ignored)

    def build(kind: str, folder: Path, out: Path) -> Path:
        code = f"from setuptools.build_meta import build_{kind}; print(build_{kind}({str(out)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
        )
        return out / done.stdout.splitlines()[-1]

    for out in ("a", "b"):
        (tmp_path / out).mkdir()
    shutil.unpack_archive(build("sdist", source, tmp_path / "a"), tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for folder, out in ((source, tmp_path / "a"), (unpacked, tmp_path / "b")):
        with zipfile.ZipFile(build("wheel", folder, out)) as wheel:
            names = set(wheel.namelist())
        assert {f"d2kd/model_zoo/{name}" for name in tracked} <= names
        assert {"d2kd/py.typed", "d2kd/tools/__init__.py"} <= names
