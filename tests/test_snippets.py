"""Every snippet of the documentation runs, or is at least what the real parsers and configs take.

- Python runs in a folder with a user's configs, weights and pictures. Nodes of configs are checked.
- Shell commands are parsed by the real parsers of `d2kd` and train_net.py. The configs that they
  name are loaded, and the overrides are applied. Nothing is trained or downloaded.
- Transcripts run and print what the page shows.

tests/test_readme.py and tests/test_docs.py check what the first examples do.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf

from d2kd import load_student_config, model_zoo
from d2kd.checkpoint import Checkpointer
from d2kd.checks import check_nodes
from d2kd.cli import COMMANDS, main
from d2kd.commands import parse_arguments
from d2kd.config import load_config
from d2kd.export import open_source
from d2kd.export.yacs import write_yacs
from d2kd.lazy import apply_overrides, load_lazy_config
from d2kd.pseudo.job import LabelingJob
from d2kd.recipes import config_path
from d2kd.tools import train
from d2kd.tools.compare.entries import read_entries
from tests.snippets import PAGES, ROOT, find_snippets, list_commands
from tests.test_readme import STUDENT

SNIPPETS = [snippet for page in PAGES for snippet in find_snippets(page)]
MOST_MARKERS = 3  # snippets that are not run

# What a reader has at hand where a page shows only a part of a config.
PRELUDE = """
from detectron2.config import LazyCall as L, LazyConfig, instantiate
import d2kd
from d2kd import *
from d2kd.methods import *
_config = LazyConfig.load("my_student.py")
dataloader, lr_multiplier, optimizer, train, student = (
    _config[k] for k in ("dataloader", "lr_multiplier", "optimizer", "train", "model")
)
model = L(Distiller)(
    student=student,
    teacher=L(Teacher)(model="my_teacher.py", weights="my_teacher.pth"),
    methods=L(Methods)(),
)
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A folder with what a user has: configs, checkpoints and pictures."""
    folder = tmp_path_factory.mktemp("user")
    for name, depth in dict(my_student=18, my_teacher=34, my_retinanet=18).items():
        (folder / f"{name}.py").write_text(STUDENT.format(depth=depth))
    for name in ("my_student.yaml", "my_teacher.yaml"):
        (folder / name).write_text("MODEL: {META_ARCHITECTURE: RetinaNet}\nVERSION: 2\n")
    for snippet in SNIPPETS:  # configs that one snippet shows and another uses
        if name := re.match(r"# (\w+\.py)\b", snippet.text):
            (folder / name[1]).write_text(snippet.text)
    (folder / "output/my_distilled").mkdir(parents=True)
    student = instantiate(LazyConfig.load(str(folder / "my_student.py")).model)
    Checkpointer(student, str(folder / "output/my_distilled")).save("model_final")
    exported = folder / "output/export"
    exported.mkdir()
    torch.save({"model": student.state_dict()}, exported / "model.pth")
    write_yacs(open_source(str(folder / "my_student.py"), exported / "model.pth"), exported)
    (folder / "my_project.py").write_text("class MyDetector: ...")
    for name in ("image.jpg", "board.jpg"):
        cv2.imwrite(str(folder / name), np.full((96, 128, 3), 127, np.uint8))
    return folder


@pytest.fixture(autouse=True)
def here(user, monkeypatch):
    monkeypatch.chdir(user)
    monkeypatch.syspath_prepend(str(user))


# Python


def keep_values(code: str) -> ast.Module:
    """The code, with the value of each call kept under a name, so that its node can be checked."""
    tree = ast.parse(code)
    for i, statement in enumerate(tree.body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            name = ast.Name(f"expression_{i}", ast.Store())
            tree.body[i] = ast.Assign([name], statement.value)
    return ast.fix_missing_locations(tree)


def run_python(snippet, names: dict) -> None:
    """Run a snippet as a config if it imports one next to it, and else as code of its page."""
    if re.search(r"(?m)^from \.(my_|labels\b)", snippet.text):
        Path("snippet.py").write_text(snippet.text)
        names.update(load_lazy_config("snippet.py"))
    else:
        exec(compile(keep_values(snippet.text), f"{snippet.page}:{snippet.line}", "exec"), names)
    configs = {
        name: value
        for name, value in names.items()
        if isinstance(value, (dict, DictConfig)) and not name.startswith("_")
    }
    check_nodes(OmegaConf.create(configs, flags={"allow_objects": True}))
    assert set(names.get("labels", ())) <= set(LabelingJob.__dataclass_fields__)


@pytest.mark.parametrize("page", sorted({s.page for s in SNIPPETS if s.kind == "python"}))
def test_python(page, new_datasets):
    names: dict = {}
    if page == "docs/extending.md":  # its first snippet is a file of this package
        names.update(__name__="d2kd.methods.cosine", __package__="d2kd.methods")
    for snippet in find_snippets(page):
        if snippet.kind == "python" and not snippet.reason:
            exec(PRELUDE, names)  # again, because a snippet begins with the user's own config
            run_python(snippet, names)


# Shell


class Parsed(Exception):
    """Raised with the arguments that a command has parsed, before the command does anything."""


@pytest.fixture
def only_parse(monkeypatch):
    """Parsers raise `Parsed` once they are done, and an error where they refuse something."""

    def stop(parse):
        @functools.wraps(parse)
        def parse_and_stop(self, args=None, namespace=None):
            raise Parsed(parse(self, args, namespace))

        return parse_and_stop

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(
            argparse.ArgumentParser, name, stop(getattr(argparse.ArgumentParser, name))
        )


def parse(program: str, words: list[str]) -> tuple[str, argparse.Namespace] | None:
    """Name of the command of `d2kd`, and its arguments; None for other programs."""
    if program == "python":
        if words[0] == "train_net.py":
            module, name, words = "train", "train", words[1:]
        elif words[0] == "-m" and words[1].startswith("d2kd.tools."):
            module = name = words[1].removeprefix("d2kd.tools.")
            words = words[2:]
        else:
            if words[0] == "-c":
                compile(words[1], "snippet", "exec")
            else:
                assert find_spec(words[1]) if words[0] == "-m" else Path(words[0]).is_file(), words
            return None
    elif program == "d2kd":
        name = words[0]
        module, words = COMMANDS[name].module, words[1:]
    else:
        if program == "make":
            targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
            assert {w for w in words if "=" not in w} <= set(targets), words
        return None
    with pytest.raises(Parsed) as parsed:
        if module == "train":
            parse_arguments(train.argument_parser(), words)
        else:
            import_module(f"d2kd.tools.{module}").main(words)
    return name, parsed.value.args[0]


def configs_of(name: str, args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Configs that a command loads, each with its overrides."""
    if name == "compare":
        entries = read_entries(args.entries, None) if args.entries else []
        if args.file:  # other tests check every row of these tables
            entries += read_entries([], ROOT / args.file)[:1]
        return [(e.config, [x.replace("{seed}", "1") for x in e.overrides]) for e in entries]
    found = vars(args)
    words = list(found.get("opts") or found.get("overrides") or [])
    path = found.get("config_file") or found.get("config")
    if not path and words and words[0].endswith(".py"):  # `parse_arguments` does this later
        path, words = words[0], words[1:]
    alone = [x for x in found.get("what") or [] if x.endswith(".py")]
    alone += [x for x in (found.get("student"), found.get("teacher")) if isinstance(x, str)]
    return [(path, words)] * bool(path) + [(x, []) for x in alone]


def check(path: str, overrides: Iterable[str]) -> None:
    """Load a config with overrides, or find a name in the model zoo."""
    if not path.endswith((".py", ".yaml")):
        assert path in (*model_zoo.list_detectors(), "NAME"), path
    elif path.startswith("COCO-"):  # in Detectron2's model zoo
        load_student_config(path)
    elif not overrides and not Path(path).is_file():
        config_path(path)  # one of ours: other tests load all of them
    elif "labels" in Path(path).name:
        apply_overrides(load_lazy_config(config_path(path)), list(overrides))
    else:
        load_config(path, list(overrides))


@pytest.mark.parametrize("page", sorted({s.page for s in SNIPPETS if s.kind == "shell"}))
def test_shell(page, only_parse, my_data, tmp_path):
    loaded: dict[str, dict[str, None]] = defaultdict(dict)  # in their order, each once
    for snippet in find_snippets(page):
        if snippet.kind != "shell" or snippet.reason:
            continue
        calls = list_commands(snippet.text, tmp_path)
        assert calls or "export " in snippet.text, snippet
        for program, *words in calls:
            print(f"{page}:{snippet.line}", shlex.join([program, *words]))  # shown if it fails
            parsed = parse(program, words)
            for path, overrides in configs_of(*parsed) if parsed else []:
                loaded[path].update(dict.fromkeys(overrides))
    for path, overrides in loaded.items():
        check(path, overrides)


@pytest.mark.parametrize(
    "snippet", [s for s in SNIPPETS if s.kind == "transcript"], ids=lambda s: f"{s.page}:{s.line}"
)
def test_transcript(snippet, capsys):
    for part in re.split(r"(?m)^\$ ", snippet.text)[1:]:
        command, printed = part.split("\n", 1)
        program, *words = shlex.split(command)
        assert program == "d2kd"
        main(words)
        out, err = capsys.readouterr()
        assert (out + err).strip() == printed.strip()


# The pages themselves


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_of_python_is_found(page):
    text = (ROOT / page).read_text()
    found = [snippet.kind for snippet in find_snippets(page)]
    assert found.count("python") == text.count("```python")


def test_almost_every_snippet_is_run():
    assert sum(bool(snippet.reason) for snippet in SNIPPETS) <= MOST_MARKERS
    assert sum(snippet.kind == "python" for snippet in SNIPPETS) > 20
    assert sum(snippet.kind == "shell" for snippet in SNIPPETS) > 30


def test_kinds_of_snippets():
    text = """\
# Title

    d2kd doctor \\
        config.py

    farm/
      train/      images

- a list

    with a paragraph

A paragraph.

    $ d2kd --version
    d2kd 1

<!-- not run: it never ends -->

```python
while True: ...
```
```python
x = 1
```
"""
    found = [(s.line, s.kind, s.text, s.reason) for s in find_snippets("page.md", text)]
    assert found == [
        (3, "shell", "d2kd doctor \\\n    config.py\n\nfarm/\n  train/      images\n", None),
        (15, "transcript", "$ d2kd --version\nd2kd 1\n", None),
        (21, "python", "while True: ...\n", "it never ends"),
        (24, "python", "x = 1\n", None),
    ]


def test_loops_and_variables_are_resolved(tmp_path):
    script = 'c=a.py; for n in 1 2; do X=1 .venv/bin/d2kd train "$c" seed=$n; done  # comment'
    assert list_commands(script, tmp_path) == [
        ["d2kd", "train", "a.py", "seed=1"],
        ["d2kd", "train", "a.py", "seed=2"],
    ]
    for wrong in ("rm -r x", "for x in", "d2kd 'x"):
        with pytest.raises(AssertionError):
            list_commands(wrong, tmp_path)
