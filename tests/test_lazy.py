"""Errors in configs and overrides: the file and line, or the override, are named."""

import builtins

import pytest
from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from d2kd.lazy import apply_overrides, load_lazy_config


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "config.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_config_is_loaded_as_detectron2_does(write):
    path = write("train = dict(max_iter=3)\n")
    assert load_lazy_config(path) == LazyConfig.load(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a = 1\nmodel = dict(a=1\nb = 2\n", r"config.py, line 2: expected Python, found 'model"),
        ("a = 1\nimport nowhere\n", r"config.py, line 2: .*ModuleNotFoundError: .*nowhere"),
        ("from detectron2.config import Nowhere\n", r"config.py, line 1: .*cannot import name"),
        ("a = 1\n\nb = c\n", r"config.py, line 3: .*found NameError: name 'c' is not defined"),
        ("a = dict(b=1)\na.b.c = 2\n", r"config.py, line 2: .*found AttributeError"),
        (
            "from .gone import model\n",
            r"config.py, line 1: .*ImportError: .*gone.py does not",
        ),
        (
            "from .other import train\ntrain.max_itr += 1\n",
            r"config.py, line 2: .*found ConfigAttributeError: Missing key max_itr",
        ),
        ("from .other import modle\n", r"config.py, line 1: expected a name .*found 'modle'"),
        ("from .broken import train\n", r"broken.py, line 1: expected Python, found 'train = \('"),
        ("from .failing import train\n", r"failing.py, line 2: .*ZeroDivisionError"),
    ],
)
def test_mistakes_in_a_config_name_the_line(write, text, message):
    write("train = dict(max_iter=3)\n", "other.py")
    write("train = (\n", "broken.py")
    write("train = {}\n1 / 0\n", "failing.py")
    own_import = builtins.__import__
    with pytest.raises(ValueError, match=message):
        load_lazy_config(write(text))
    assert builtins.__import__ is own_import


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.yaml", b"a: [1\nb: 2\n", r"config.yaml, line 2: expected YAML, found"),
        ("config.py", b"\xff\xfea = 1\n", r"config.py: expected a text in UTF-8"),
        ("config.json", b"{}", r"config.json: expected a config \(.py or .yaml\)"),
        ("config.yaml", b"- 1\n", r"config.yaml: expected named sections"),
        ("config.yaml", b"", r"config.yaml: expected named sections, found an empty file"),
    ],
)
def test_files_that_are_no_configs(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_lazy_config(tmp_path / name)


def test_a_missing_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a config, found no file at .*no\.py"):
        load_lazy_config(tmp_path / "no.py")


def test_errors_of_other_code_that_a_config_calls_stay_what_they_are(write):
    text = "import json\nmodel = dict(a=json.loads('{'))\n"
    with pytest.raises(ValueError, match="Expecting property name"):
        load_lazy_config(write(text))


@pytest.mark.parametrize(
    "override",
    ["train.max_iter", "a b=1", "train.max_iter=[1,2", "=3", "~train", "train.x=1,2", "a..b=1", ""],
)
def test_malformed_overrides_are_named(override):
    cfg = OmegaConf.create(dict(train=dict(max_iter=1)))
    with pytest.raises(ValueError) as error:
        apply_overrides(cfg, ["train.max_iter=5", override])
    assert f"override {override!r}: expected FIELD=VALUE, found" in str(error.value)
    assert "\n" not in str(error.value) and cfg.train.max_iter == 5


def test_overrides_of_a_value_as_if_it_were_a_section():
    cfg = OmegaConf.create(dict(train=dict(max_iter=1)))
    with pytest.raises(ValueError, match=r"override 'train.max_iter.x=1': .*is not a config"):
        apply_overrides(cfg, ["train.max_iter.x=1"])
