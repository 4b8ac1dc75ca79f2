"""The table of Detectron2's model zoo: what is tried for a detector, and how the page changes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from d2kd.tools import zoo_table
from d2kd.tools.zoo_table import FEATURES, Row, entries, render, replace_table, try_detector
from tests import toys
from tests.queries import QueryDetector


@pytest.mark.parametrize(
    "build, kind, methods",
    [
        (toys.retinanet, "RetinaNet", {*FEATURES, "RankMimic", "PFI", "PGD"}),
        (toys.rcnn, "GeneralizedRCNN", {*FEATURES, "PFI"}),  # by its RPN
        (QueryDetector, "QueryDetector", {*FEATURES}),
        (lambda: toys.point("GFL"), "GFL", {*FEATURES, "LD", "RankMimic", "PFI", "PGD"}),
    ],
)
def test_detectors_teach_and_learn_by_the_methods_that_accept_them(build, kind, methods):
    row = try_detector("x", build)
    assert row[:4] == ("x", kind, "yes", "yes")
    assert set(row.methods) == methods


@pytest.mark.parametrize(
    "error, needed",
    [
        (ImportError("Cannot import 'detectron2._C'"), "Detectron2's compiled operators"),
        (ModuleNotFoundError("No module named 'mmdet'", name="mmdet"), "the package mmdet"),
    ],
)
def test_a_detector_that_cannot_be_built_here_is_not_tried(error, needed):
    def build():
        raise error

    row = try_detector("x", build)
    assert row.teacher == row.student == f"not tried: needs {needed}"


def test_a_module_that_cannot_be_read():
    assert try_detector("x", lambda: nn.Linear(1, 1))[2:4] == ("no", "without methods")


def test_gradients_that_are_not_finite_are_told():
    def build():
        model = toys.retinanet()
        torch.nn.init.constant_(model.head.cls_score.weight, float("nan"))
        return model

    assert try_detector("x", build).student == "not finite"


def test_the_table_counts():
    found = [
        Row("a.py", "RetinaNet", "yes", "yes", [*FEATURES, "PGD"]),
        Row("b.py", "Other", "no", "without methods"),
        Row("c.py", "", "not tried: x", "not tried: x"),
    ]
    lines = render(found).splitlines()
    assert lines[2] == "| a.py | RetinaNet | yes | yes | features, PGD |"
    assert lines[3] == "| b.py | Other | no | without methods |  |"
    assert lines[-1] == "1 of 2 detectors teach and learn; 1 were not tried."


def test_only_the_table_of_a_page_is_replaced(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{zoo_table.BEGIN}\nold\n{zoo_table.END}\n\nafter\n")
    monkeypatch.setattr(zoo_table, "_build", lambda name: toys.retinanet())
    assert zoo_table.main(["toy.py", "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n\n<!--") and text.endswith("<!-- end -->\n\nafter\n")
    assert "old" not in text and "| toy.py | RetinaNet | yes | yes | features, PGD" in text
    assert "toy.py  RetinaNet  yes  yes  Mimic" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--write: expected a page with the lines"):
        replace_table("nothing", "table")


def test_entries_are_detectors():
    names = entries()
    assert "COCO-Detection/fcos_R_50_FPN_1x.py" in names
    assert "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py" in names
    assert not [x for x in names if "Base" in x or x.startswith(("common", "quick", "Misc/torch"))]


def test_the_page_has_every_entry_of_the_installed_zoo():
    page = Path("docs/detectors.md").read_text()
    table = page.partition(zoo_table.BEGIN)[2].partition(zoo_table.END)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert set(rows) >= set(entries())
