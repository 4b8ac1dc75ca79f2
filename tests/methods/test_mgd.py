"""MGD against loops over cells, and its masks."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec

from d2kd import Distiller, Teacher
from d2kd.knowledge import Knowledge
from d2kd.methods import MCDropout, Methods
from d2kd.methods.base import LevelPair
from d2kd.methods.mgd import MGD
from d2kd.readers import get_reader
from tests import toys


def one_level(channels: int, **options) -> tuple[MGD, LevelPair]:
    method, shape = MGD(**options), ShapeSpec(channels=channels, stride=8)
    pair = LevelPair("p3", "p3", shape, shape)
    method.setup_level(pair)
    return method, pair


def loss(method: MGD, pair: LevelPair, student, teacher, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return method.compare(pair, student, teacher, None)["generation"]


def mask(method: MGD, student: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return method.draw(student)


# ---- the loss


def convolve(x: np.ndarray, conv: torch.nn.Conv2d) -> np.ndarray:
    """A 3x3 convolution of a map (C, H, W) by its definition."""
    weight, bias = (p.detach().numpy() for p in (conv.weight, conv.bias))
    _, h, w = x.shape
    out = np.zeros((len(bias), h, w))
    for o, row, column in np.ndindex(*out.shape):
        out[o, row, column] = bias[o]
        for i, dy, dx in np.ndindex(len(x), 3, 3):
            r, c = row + dy - 1, column + dx - 1
            if 0 <= r < h and 0 <= c < w:
                out[o, row, column] += weight[o, i, dy, dx] * x[i, r, c]
    return out


def test_equals_a_loop_over_cells():
    method, pair = one_level(channels=3, mask=0.5, alpha=0.01)
    first, _, second = method.double().generation.p3
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    keep = mask(method, student)
    expected = 0
    for s, t, m in zip(student.numpy(), teacher.numpy(), keep.numpy(), strict=True):
        generated = convolve(np.maximum(convolve(s * m, first), 0), second)
        expected += 0.01 * ((generated - t) ** 2).sum() / 2
    assert 0 < keep.mean() < 1
    assert loss(method, pair, student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradients_equal_finite_differences():
    method, pair = one_level(channels=2, mask=0.3, alpha=1.0)
    method.double()
    student, teacher = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64)
    inputs = student.requires_grad_(), *method.generation.p3.parameters()
    assert torch.autograd.gradcheck(lambda s, *_: loss(method, pair, s, teacher), inputs)


def test_alpha_scales_the_loss():
    method, pair = one_level(channels=3)
    student, teacher = torch.randn(2, 2, 3, 4, 5)
    released = loss(method, pair, student, teacher)
    method.alpha *= 10
    torch.testing.assert_close(loss(method, pair, student, teacher), 10 * released)


# ---- the mask


@pytest.mark.parametrize("fraction", [0.0, 0.45, 0.65])
def test_fraction_of_masked_cells(fraction):
    keep = MGD(mask=fraction).draw(torch.randn(50, 3, 40, 40))
    assert keep.shape == (50, 1, 40, 40) and ((keep == 0) | (keep == 1)).all()
    # 80 000 cells: a standard deviation of 0.002.
    assert (keep == 0).float().mean().item() == pytest.approx(fraction, abs=0.01)


def test_images_and_steps_have_their_own_masks():
    method, features = MGD(), torch.randn(2, 3, 8, 8)
    first, second = method.draw(features), method.draw(features)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)


def test_levels_have_their_own_masks():
    reader = get_reader(toys.retinanet())
    method = MGD(levels=["p3", "p4"], alpha=1.0)
    method.setup(reader, reader)
    method.generation["p3"] = method.generation["p4"] = torch.nn.Identity()
    maps = {level: torch.ones(1, 8, 8, 8, requires_grad=True) for level in ("p3", "p4")}
    zeros = {level: torch.zeros(1, 8, 8, 8) for level in maps}
    value = method(Knowledge((64, 64), maps), Knowledge((64, 64), zeros), None)["generation"]
    first, second = torch.autograd.grad(value, list(maps.values()))
    assert first.any() and second.any() and not torch.equal(first, second)


def test_masked_cells_hide_all_channels_of_the_student():
    method, pair = one_level(channels=3, alpha=0.5)
    method.generation["p3"] = torch.nn.Identity()
    student = torch.randn(2, 3, 6, 7, requires_grad=True)
    value = loss(method, pair, student, torch.zeros(2, 3, 6, 7))
    keep = mask(method, student)
    # The derivative of 0.5 / 2 * (m s)^2.
    expected = 0.5 * keep * student.detach()
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], expected)


def test_seed_decides():
    method, pair = one_level(channels=3)
    student, teacher = torch.randn(2, 2, 3, 6, 6)
    first, again, other = (loss(method, pair, student, teacher, seed) for seed in (1, 1, 2))
    assert first == again and first != other


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_impossible_mask_is_refused(fraction):
    message = rf"MGD.mask: expected a number >= 0 and < 1, found {fraction}"
    with pytest.raises(ValueError, match=message):
        MGD(mask=fraction)


# ---- limits


def test_one_cell_is_finite_whether_masked_or_not():
    method, pair = one_level(channels=3)
    values = set()
    for seed in range(20):
        student = torch.randn(1, 3, 1, 1, requires_grad=True)
        value = loss(method, pair, student, torch.randn(1, 3, 1, 1), seed)
        gradient = torch.autograd.grad(value, student)[0]
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        values.add(mask(method, student, seed).item())
    assert values == {0, 1}


def test_constant_channels_are_finite():
    method, pair = one_level(channels=3)
    student = torch.full((2, 3, 4, 4), 7.0, requires_grad=True)
    value = loss(method, pair, student, torch.zeros(2, 3, 4, 4))
    gradient = torch.autograd.grad(value, student)[0]
    assert torch.isfinite(value) and torch.isfinite(gradient).all() and gradient.any()


# ---- with detectors


def test_other_width_and_grid():
    method = MGD(levels={"p3": "p2"})
    method.setup(get_reader(toys.retinanet()), get_reader(toys.rcnn(channels=12)))
    shapes = {k: tuple(p.shape) for k, p in method.named_parameters() if k.endswith("weight")}
    assert shapes == {
        "adapters.p3.weight": (12, 8, 1, 1),
        "generation.p3.0.weight": (12, 12, 3, 3),
        "generation.p3.2.weight": (12, 12, 3, 3),
    }
    student = Knowledge((64, 96), {"p3": torch.randn(2, 8, 8, 12, requires_grad=True)})
    teacher = Knowledge((64, 96), {"p2": torch.randn(2, 12, 16, 24)})
    method(student, teacher, None)["generation"].backward()
    assert student.features["p3"].grad.any()
    assert all(p.grad.any() for p in method.parameters())


def test_uncertainty_changes_the_teacher_only():
    reader = get_reader(toys.retinanet())
    method = MGD(levels=["p3", "p4"], mask=0.0)  # no cell is masked, so only the dropout is random
    method.setup(reader, reader)
    student, teacher = (
        Knowledge((64, 64), {f"p{i}": torch.randn(2, 8, 64 >> i, 64 >> i) for i in (3, 4)})
        for _ in range(2)
    )
    twice = Knowledge((64, 64), {k: 2 * x for k, x in teacher.features.items()})
    plain, doubled = (method(student, t, None)["generation"] for t in (teacher, twice))
    for rates in ((), (0,) * 3):
        method.uncertainty = MCDropout(rates, "mean")
        assert torch.equal(method(student, teacher, None)["generation"], plain)
        method.uncertainty = MCDropout(rates, "sum")
        assert torch.equal(method(student, teacher, None)["generation"], doubled)
    method.uncertainty = MCDropout()
    assert method(student, teacher, None)["generation"] not in (plain, doubled)
    assert doubled > plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_the_student_only(dtype):
    methods = Methods(mgd=MGD(uncertainty=MCDropout()))
    teacher = Teacher(toys.retinanet(channels=12), None)
    model = Distiller(student=toys.retinanet(), teacher=teacher, methods=methods).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = model([toys.image(), toys.image([], seed=1)])["loss_distill_mgd"]
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(value) and value > 0
    gradient = model.student.backbone.fpn_output3.weight.grad
    assert torch.isfinite(gradient).all() and gradient.any()
    assert all(torch.isfinite(p.grad).all() for p in model.distillation.parameters())
    assert all(p.grad.any() for p in model.distillation["mgd"].generation.p3.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())
