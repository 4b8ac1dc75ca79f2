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
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog
from omegaconf import OmegaConf

from d2kd import model_zoo
from d2kd.checkpoint import Checkpointer
from d2kd.checks import check_nodes
from d2kd.cli import COMMANDS, main
from d2kd.commands import parse_arguments
from d2kd.config import config_path, load_config
from d2kd.lazy import apply_overrides, load_lazy_config
from d2kd.pseudo.job import LabelingJob
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
    for snippet in SNIPPETS:  # configs that one snippet shows and another uses
        if name := re.match(r"# (my_\w+\.py)\n", snippet.text):
            (folder / name[1]).write_text(snippet.text)
    (folder / "output/my_distilled").mkdir(parents=True)
    student = instantiate(LazyConfig.load(str(folder / "my_student.py")).model)
    Checkpointer(student, str(folder / "output/my_distilled")).save("model_final")
    for name in ("image.jpg", "board.jpg"):
        cv2.imwrite(str(folder / name), np.full((96, 128, 3), 127, np.uint8))
    return folder


@pytest.fixture(autouse=True)
def here(user, monkeypatch):
    monkeypatch.chdir(user)


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
    """Run a snippet as a config if it imports one beside it, and else as code of its page."""
    if re.search(r"(?m)^from \.my_", snippet.text):
        Path("snippet.py").write_text(snippet.text)
        names.update(load_lazy_config("snippet.py"))
    else:
        exec(compile(keep_values(snippet.text), f"{snippet.page}:{snippet.line}", "exec"), names)
    configs = {k: v for k, v in names.items() if OmegaConf.is_config(v) and not k.startswith("_")}
    check_nodes(OmegaConf.create(configs, flags={"allow_objects": True}))


@pytest.mark.parametrize("page", [p for p in PAGES if any(s.page == p and s.kind == "python" for s in SNIPPETS)])
def test_python(page, new_datasets):
    names: dict = {}
    if page == "docs/extending.md":  # its first snippet is a file of this package
        names.update(__name__="d2kd.methods.cosine", __package__="d2kd.methods")
    exec(PRELUDE, names)
    for snippet in find_snippets(page):
        if snippet.kind == "python" and not snippet.reason:
            run_python(snippet, names)
