"""CWD against the released code's number and against a loop over channels."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from d2kd import Distiller, Teacher
from d2kd.knowledge import Knowledge
from d2kd.methods import MCDropout, Methods
from d2kd.methods.cwd import CWD
from d2kd.readers import get_reader
from tests import toys

# Inputs and output of the released code (mmrazor) in float64, at tau 1 and weight 1.
REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "fgd_reference.npz")


def loss(student: torch.Tensor, teacher: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    return CWD(tau=tau).compare(None, student, teacher, None)["divergence"]


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's and the teacher's maps."""
    student, teacher = torch.randn(2, *shape, dtype=dtype)
    return student.requires_grad_(), teacher


# ---- the loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_released_code(dtype):
    student, teacher = (torch.from_numpy(REFERENCE[k]).to(dtype) for k in ("student", "teacher"))
    assert loss(student, teacher).item() == pytest.approx(REFERENCE["out_cwd"], rel=1e-6)


def softmax(values: list[float], tau: float) -> list[float]:
    powers = [math.exp(v / tau) for v in values]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_equals_a_loop_over_channels(tau):
    student, teacher = maps(2, 3, 4, 5)
    expected = 0
    for image in range(2):
        for c in range(3):
            s, t = (softmax(x[image, c].flatten().tolist(), tau) for x in (student, teacher))
            expected += sum(b * math.log(b / a) for a, b in zip(s, t, strict=True))
    expected *= tau**2 / (2 * 3)
    assert loss(student, teacher, tau).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tau", [0.5, 4.0])
def test_gradients_equal_finite_differences(tau):
    student, teacher = maps(2, 3, 2, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, tau), student)


def test_offset_of_a_channel_does_not_matter():
    student, teacher = maps(2, 3, 4, 5)
    offset = torch.randn(3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(loss(student + offset, teacher - offset), loss(student, teacher))


def test_twice_the_maps_are_half_the_temperature():
    student, teacher = maps(2, 3, 4, 5)
    torch.testing.assert_close(
        loss(2 * student, 2 * teacher), 4 * loss(student, teacher, tau=0.5)
    )  # 4 for tau^2


def test_the_teacher_itself_has_no_loss_and_no_gradient():
    _, teacher = maps(2, 3, 4, 5)
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher)
    assert value == 0 and torch.autograd.grad(value, student)[0].abs().max() < 1e-15


@pytest.mark.parametrize("tau", [0, -1.0])
def test_impossible_temperature_is_refused(tau):
    with pytest.raises(ValueError, match=rf"CWD.tau: expected a number > 0, found {tau}"):
        CWD(tau=tau)


# ---- limits


@pytest.mark.parametrize("n", [1, 2])
def test_one_cell_has_zero_loss_and_stays_in_the_graph(n):
    student, teacher = maps(n, 3, 1, 1, dtype=torch.float32)
    value = loss(student, teacher)
    assert value == 0 and not torch.autograd.grad(value, student)[0].any()


def test_constant_channels_are_finite_and_learn():
    _, teacher = maps(2, 3, 4, 5, dtype=torch.float32)
    flat = torch.full((2, 3, 4, 5), 1000.1, requires_grad=True)
    value = loss(flat, teacher)
    gradient = torch.autograd.grad(value, flat)[0]
    assert value > 0 and torch.isfinite(gradient).all() and gradient.any()
    assert loss(flat, torch.zeros_like(flat)).item() == pytest.approx(0, abs=1e-6)


def test_certain_channels_are_finite_in_fp32():
    # The teacher's distribution is concentrated in one cell, the student's in another.
    student, teacher = torch.zeros(2, 1, 1, 4, 5)
    student[..., 0, 0], teacher[..., 1, 1] = 1e4, 1e4
    student.requires_grad_()
    value = loss(student, teacher)
    assert value.item() == pytest.approx(1e4)
    gradient = torch.autograd.grad(value, student)[0]
    assert gradient[0, 0, 0, 0].item() == pytest.approx(1)
    assert gradient[0, 0, 1, 1].item() == pytest.approx(-1)


# ---- with detectors


def test_published_weight_is_the_default():
    assert CWD().weight == 10 and CWD(weight=5).weight == 5


def test_other_width_and_grid():
    method = CWD(levels={"p3": "p2"})
    method.setup(get_reader(toys.retinanet()), get_reader(toys.rcnn(channels=12)))
    assert [tuple(p.shape) for p in method.parameters()] == [(12, 8, 1, 1), (12,)]
    student = Knowledge((64, 96), {"p3": torch.randn(2, 8, 8, 12, requires_grad=True)})
    teacher = Knowledge((64, 96), {"p2": torch.randn(2, 12, 16, 24)})
    method(student, teacher, None)["divergence"].backward()
    assert student.features["p3"].grad.any() and method.adapters["p3"].weight.grad.any()


def two_levels() -> tuple[CWD, Knowledge, Knowledge]:
    reader, method = get_reader(toys.retinanet()), CWD(levels=["p3", "p4"])
    method.setup(reader, reader)
    student, teacher = (
        Knowledge((64, 64), {f"p{i}": torch.randn(2, 8, 64 >> i, 64 >> i) for i in (3, 4)})
        for _ in range(2)
    )
    return method, student, teacher


def test_levels_are_summed():
    method, student, teacher = two_levels()
    expected = sum(loss(student.features[k], teacher.features[k]) for k in ("p3", "p4"))
    assert method(student, teacher, None)["divergence"] == expected
    assert not list(method.parameters())


def test_uncertainty_changes_the_teacher_only():
    method, student, teacher = two_levels()
    twice = Knowledge((64, 64), {k: 2 * x for k, x in teacher.features.items()})
    plain, doubled = (method(student, t, None)["divergence"] for t in (teacher, twice))
    for rates in ((), (0,) * 3):
        method.uncertainty = MCDropout(rates, "mean")
        assert torch.equal(method(student, teacher, None)["divergence"], plain)
        method.uncertainty = MCDropout(rates, "sum")
        assert torch.equal(method(student, teacher, None)["divergence"], doubled)
    method.uncertainty = MCDropout()
    assert method(student, teacher, None)["divergence"] not in (plain, doubled)
    assert doubled > plain


@pytest.mark.parametrize("n", [1, 2])  # p6 and p7 are single cells
def test_trains_the_student_only(n):
    methods = Methods(cwd=CWD(uncertainty=MCDropout()))
    teacher = Teacher(toys.retinanet(channels=12), None)
    model = Distiller(student=toys.fcos(), teacher=teacher, methods=methods).train()
    value = model([toys.image([]), toys.image(seed=1)][-n:])["loss_distill_cwd"]
    value.backward()
    assert torch.isfinite(value) and value > 0
    gradient = model.student.backbone.fpn_output3.weight.grad
    assert torch.isfinite(gradient).all() and gradient.any()
    assert all(torch.isfinite(p.grad).all() for p in model.distillation.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())
