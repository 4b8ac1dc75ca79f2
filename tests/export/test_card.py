"""The model card of an export."""

import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from d2kd import methods
from d2kd.export.card import _methods


@pytest.mark.parametrize("kind", ["PKD", "FGD", "CWD", "MGD", "Mimic"])
def test_the_weight_of_a_method_is_the_one_that_it_trains_with(kind):
    cls = getattr(methods, kind)
    nodes = dict(default=L(cls)(), given=L(cls)(weight=0.25))
    cfg = OmegaConf.create({"model": {"methods": nodes}}, flags={"allow_objects": True})
    found = {name: row["weight"] for name, row in _methods(cfg).items()}
    assert found == {"default": cls().weight, "given": 0.25}
