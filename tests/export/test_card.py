"""The model card of an export."""

import json

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from d2kd import methods
from d2kd.data import load_unlabeled, mix
from d2kd.export.card import _labels, _methods
from d2kd.export.card_text import _methods_cell
from d2kd.pseudo import load_pseudo_labels


@pytest.mark.parametrize("kind", ["PKD", "FGD", "CWD", "MGD", "Mimic"])
def test_the_weight_of_a_method_is_the_one_that_it_trains_with(kind):
    cls = getattr(methods, kind)
    nodes = dict(default=L(cls)(), given=L(cls)(weight=0.25))
    cfg = OmegaConf.create({"model": {"methods": nodes}}, flags={"allow_objects": True})
    found = {name: row["weight"] for name, row in _methods(cfg).items()}
    assert found == {"default": cls().weight, "given": 0.25}


@pytest.mark.parametrize("kept", [True, False])
def test_the_teachers_that_made_the_labels_are_named(tmp_path, monkeypatch, kept):
    monkeypatch.chdir(tmp_path)  # paths of this machine are not shown
    path = str(tmp_path / "labels.json")
    if kept:
        teachers = {"big": {"weights": "ab" * 32}, "old": {"weights": "cd" * 32}}
        provenance = {"schema": 2, "made_from": {"teachers": teachers}}
        (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    dataset = L(mix)(source=L(load_unlabeled)(name="x"), target=L(load_pseudo_labels)(path=path))
    cfg = OmegaConf.create({"dataloader": {"train": {"dataset": dataset}}})
    (line,) = _labels(cfg)
    if kept:
        assert line == "labels.json by big (sha256 abababababab), old (sha256 cdcdcdcdcdcd)"
    else:
        assert line == "labels.json by teachers that are not known"
    assert _labels(OmegaConf.create({"dataloader": {}})) == []


@pytest.mark.parametrize(
    ("node", "cell"),
    [
        (L(methods.PFI)(balance=0.3), "PFI (balance 0.3)"),
        (L(methods.PKD)(weight=2.0), "PKD (weight 2.0)"),
        (
            L(methods.FGD)(uncertainty=L(methods.MCDropout)()),
            "FGD (weight 1.0, uncertainty MCDropout)",
        ),
    ],
)
def test_how_strong_a_method_was(node, cell):
    cfg = OmegaConf.create(dict(model=dict(methods=dict(x=node))), flags={"allow_objects": True})
    found = _methods(cfg)
    assert _methods_cell(found) == cell
