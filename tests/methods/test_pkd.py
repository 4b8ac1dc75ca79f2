"""PKD against the released code's number and against Pearson's correlation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from d2kd import Distiller, Teacher
from d2kd.knowledge import Knowledge
from d2kd.methods import MCDropout, Methods
from d2kd.methods.pkd import PKD, standardize
from d2kd.readers import get_reader
from tests import toys

# Inputs and output of the released code (mmrazor) in float64, at weight 1.
REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "fgd_reference.npz")


def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return PKD().compare(None, student, teacher, None)["correlation"]


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Student's and teacher's, which resemble one another."""
    student, teacher = torch.randn(2, *shape, dtype=dtype)
    return (student + teacher).requires_grad_(), 3 * teacher + 5


# ---- the loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_released_code(dtype):
    student, teacher = (torch.from_numpy(REFERENCE[k]).to(dtype) for k in ("student", "teacher"))
    assert loss(student, teacher).item() == pytest.approx(REFERENCE["out_pkd"], rel=1e-6)


def test_equals_a_loop_over_channels():
    student, teacher = maps(2, 4, 3, 5)
    expected = 0
    for c in range(4):
        normal = []
        for x in (student, teacher):
            values = x[:, c].detach().numpy().ravel()
            normal.append((values - values.mean()) / (values.std(ddof=1) + 1e-6))
        expected += ((normal[0] - normal[1]) ** 2).mean() / 2 / 4
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_is_one_minus_pearsons_correlation():
    student, teacher = maps(2, 4, 3, 5)
    r = [
        np.corrcoef(student[:, c].detach().numpy().ravel(), teacher[:, c].numpy().ravel())[0, 1]
        for c in range(4)
    ]
    # Not quite: for 1e-6 in the denominator.
    expected = 29 / 30 * np.mean(1 - np.array(r))
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_scale_and_offset_of_a_channel_do_not_matter():
    student, teacher = maps(2, 4, 6, 7)
    scale, offset = torch.rand(4, 1, 1) + 0.5, 10 * torch.randn(4, 1, 1)
    plain = loss(student, teacher)
    for changed in ((student, 2 * teacher), (scale * student + offset, 0.1 * teacher - offset)):
        torch.testing.assert_close(loss(*changed), plain, rtol=1e-5, atol=0)
    assert loss(-student, teacher) > plain


def test_same_and_opposite_maps_are_the_ends_of_the_range():
    _, teacher = maps(2, 4, 6, 7)
    assert loss(teacher.clone(), teacher) == 0
    assert loss(-teacher, teacher).item() == pytest.approx(2 * 83 / 84, rel=1e-5)


def test_gradients_equal_finite_differences():
    student, teacher = maps(2, 3, 2, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


# ---- limits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_cell_costs_nothing_and_stays_in_the_graph(dtype):
    student, teacher = maps(1, 3, 1, 1, dtype=dtype)
    value = loss(student, teacher)
    assert value == 0 and not torch.autograd.grad(value, student)[0].any()


def test_one_cell_of_two_images_has_a_correlation():
    student = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    for sign, expected in ((1, 0), (-1, 1)):  # r = 1 and -1, (M - 1) / M = 1 / 2
        assert loss(student, sign * student).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, 1000.1])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 5, 7), (2, 40, 37, 51)])
def test_constant_channels_are_finite(value, shape):
    student, teacher = maps(*shape, dtype=torch.float32)
    flat = torch.full_like(student, value).requires_grad_()
    # Rounding in the mean would be divided by 1e-6.
    assert not standardize(flat).any()
    m = shape[0] * shape[2] * shape[3]
    for s, t in ((flat, teacher), (student, flat.detach())):
        found = loss(s, t)
        # One side is zero and the other standardized: half its biased variance.
        assert found.item() == pytest.approx((m - 1) / m / 2, rel=1e-3)
        assert torch.isfinite(torch.autograd.grad(found, s)[0]).all()
    both = loss(flat, torch.zeros_like(flat))
    assert both == 0 and not torch.autograd.grad(both, flat)[0].any()


# ---- with detectors


def test_published_weight_is_the_default():
    assert PKD().weight == 6 and PKD(weight=10).weight == 10


def test_other_width_and_grid():
    method = PKD(levels={"p3": "p2"})
    method.setup(get_reader(toys.retinanet()), get_reader(toys.rcnn(channels=12)))
    assert [tuple(p.shape) for p in method.parameters()] == [(12, 8, 1, 1), (12,)]
    student = Knowledge((64, 96), {"p3": torch.randn(2, 8, 8, 12, requires_grad=True)})
    teacher = Knowledge((64, 96), {"p2": torch.randn(2, 12, 16, 24)})
    method(student, teacher, None)["correlation"].backward()
    assert student.features["p3"].grad.any() and method.adapters["p3"].weight.grad.any()


def two_levels(**options) -> tuple[PKD, Knowledge, Knowledge]:
    reader, method = get_reader(toys.retinanet()), PKD(levels=["p3", "p4"], **options)
    method.setup(reader, reader)
    student, teacher = (
        Knowledge((64, 64), {f"p{i}": torch.randn(2, 8, 64 >> i, 64 >> i) for i in (3, 4)})
        for _ in range(2)
    )
    return method, student, teacher


def test_levels_are_summed():
    method, student, teacher = two_levels()
    expected = sum(loss(student.features[k], teacher.features[k]) for k in ("p3", "p4"))
    assert method(student, teacher, None)["correlation"] == expected
    assert not list(method.parameters())


@pytest.mark.parametrize("rates", [(), (0,) * 3])
def test_uncertainty_without_noise_changes_nothing(rates):
    method, student, teacher = two_levels()
    plain = method(student, teacher, None)["correlation"]
    method.uncertainty = MCDropout(rates, "mean")
    assert torch.equal(method(student, teacher, None)["correlation"], plain)
    method.uncertainty = MCDropout(rates, "sum")
    found = method(student, teacher, None)["correlation"]
    twice = Knowledge((64, 64), {k: 2 * x for k, x in teacher.features.items()})
    method.uncertainty = torch.nn.Identity()
    assert torch.equal(found, method(student, twice, None)["correlation"])
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=0)


def test_sum_and_mean_of_the_same_noise_are_the_same():
    found = []
    method, _, teacher = two_levels()
    assert method(teacher, teacher, None)["correlation"] == 0
    for combine in ("sum", "mean"):
        torch.manual_seed(0)
        method.uncertainty = MCDropout(combine=combine)
        found.append(method(teacher, teacher, None)["correlation"])
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)
    assert found[0] > 1e-3


@pytest.mark.parametrize("n", [1, 2])  # one image: p6 and p7 are single cells
def test_trains_the_student_only(n):
    methods = Methods(pkd=PKD(uncertainty=MCDropout()))
    teacher = Teacher(toys.retinanet(channels=12), None)
    model = Distiller(student=toys.fcos(), teacher=teacher, methods=methods).train()
    value = model([toys.image([]), toys.image(seed=1)][-n:])["loss_distill_pkd"]
    value.backward()
    assert torch.isfinite(value) and value > 0
    gradient = model.student.backbone.fpn_output3.weight.grad
    assert torch.isfinite(gradient).all() and gradient.any()
    assert all(torch.isfinite(p.grad).all() for p in model.distillation.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_channels_that_are_constant_but_for_rounding_have_no_gradient(noise):
    torch.manual_seed(0)
    student = 5 + noise * torch.randn(2, 3, 8, 8)
    student[:, 0] = torch.randn(2, 8, 8)
    student.requires_grad_()
    found = standardize(student)
    assert not found[:, 1:].any()
    (found - torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert not student.grad[:, 1:].any() and 0 < student.grad[:, 0].abs().max() < 1
