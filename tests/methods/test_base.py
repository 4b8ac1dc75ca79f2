"""Pairing and aligning levels."""

import pytest
import torch

from d2kd.knowledge import Knowledge
from d2kd.methods import Mimic
from d2kd.methods.base import Method, pair_levels
from d2kd.readers import get_reader
from tests import toys


@pytest.fixture(scope="module")
def dense():
    return get_reader(toys.retinanet())


@pytest.fixture(scope="module")
def two_stage():
    return get_reader(toys.rcnn(channels=12))


def names(pairs):
    return [(p.student, p.teacher) for p in pairs]


def test_levels_pair_by_stride(dense, two_stage):
    # The RetinaNet has p3 to p7, the R-CNN p2 to p6: strides 8 to 64 are shared.
    assert names(pair_levels(None, dense, two_stage, "FGD")) == [
        (f"p{i}", f"p{i}") for i in (3, 4, 5, 6)
    ]


def test_levels_pair_by_name_and_by_table(dense, two_stage):
    assert names(pair_levels(["p4"], dense, two_stage, "FGD")) == [("p4", "p4")]
    assert names(pair_levels({"p3": "p2"}, dense, two_stage, "FGD")) == [("p3", "p2")]


@pytest.mark.parametrize(
    "levels, message",
    [
        (["p8"], r"FGD.levels: expected levels of the student \(RetinaNet\).* found 'p8'"),
        ({"p3": "p9"}, r"expected levels of the teacher \(GeneralizedRCNN\).* found 'p9'"),
        ([], "expected at least one level name"),
    ],
)
def test_wrong_levels_are_named(dense, two_stage, levels, message):
    with pytest.raises(ValueError, match=message):
        pair_levels(levels, dense, two_stage, "FGD")


def test_method_that_needs_what_a_detector_lacks(dense, two_stage):
    class OnTowers(Method):
        needs = frozenset({"cls_tower.1"})

    OnTowers().setup(dense, dense)
    with pytest.raises(
        ValueError, match=r"OnTowers needs cls_tower.1 of the teacher.*GeneralizedRCNN"
    ):
        OnTowers().setup(dense, two_stage)


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"Mimic.weight: expected a number >= 0, found -1"):
        Mimic(weight=-1)


def test_adapter_only_where_widths_differ(dense, two_stage):
    same, other = Mimic(), Mimic()
    same.setup(dense, dense)
    other.setup(dense, two_stage)
    assert not list(same.parameters())
    assert other.adapters["p3"].weight.shape == (12, 8, 1, 1)


def test_student_is_resized_where_strides_differ(dense, two_stage):
    method = Mimic(levels={"p3": "p2"})
    method.setup(dense, two_stage)
    student = Knowledge((64, 96), {"p3": torch.randn(1, 8, 8, 12)})
    teacher = Knowledge((64, 96), {"p2": torch.randn(1, 12, 16, 24)})
    s, t = method.align(method.pairs[0], student, teacher)
    assert s.shape == t.shape == (1, 12, 16, 24)


def test_mimic_is_the_mean_squared_difference_summed_over_levels(dense):
    method = Mimic(levels=["p3", "p4"])
    method.setup(dense, dense)
    maps = [
        {"p3": torch.randn(2, 8, 4, 4), "p4": torch.randn(2, 8, 2, 2)} for _ in ("student", "other")
    ]
    loss = method(*(Knowledge((32, 32), m) for m in maps), None)["mse"]
    expected = sum(float(((maps[0][k] - maps[1][k]).double() ** 2).mean()) for k in ("p3", "p4"))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
