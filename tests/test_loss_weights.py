import copy

import pytest
import torch
from detectron2.engine import SimpleTrainer
from fvcore.common.param_scheduler import LinearParamScheduler, MultiStepParamScheduler
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.engine import ScheduleProgress
from d2kd.loss_weights import GradientBalance, gradient_norms
from d2kd.methods import FGD, Methods, Mimic
from tests import toys


def tensors(*values):
    return [torch.tensor(v) for v in values]


def distiller(student=toys.retinanet, balance_period: int = 20, **methods) -> Distiller:
    return Distiller(
        student=student(),
        teacher=Teacher(toys.retinanet(width=6, channels=12), None),
        methods=Methods(**methods),
        balance_period=balance_period,
    )


# ---- the factor


def test_the_first_measurement_sets_the_factor():
    balance = GradientBalance(0.5)
    assert balance() == 0
    balance.update(*tensors(6.0, 2.0))
    torch.testing.assert_close(balance(), torch.tensor(1.5))


def test_later_measurements_are_averaged():
    balance = GradientBalance(2.0, momentum=0.75)
    for task, method in ((4.0, 1.0), (8.0, 5.0)):
        balance.update(*tensors(task, method))
    # 0.75 * 0.25 * 4 + 0.25 * 8 over 0.75 * 0.25 * 1 + 0.25 * 5
    torch.testing.assert_close(balance(), torch.tensor(2.0 * 2.75 / 1.4375))


@pytest.mark.parametrize("bad", [(float("inf"), 1.0), (1.0, float("nan"))])
def test_an_overflow_is_skipped(bad):
    balance = GradientBalance(1.0)
    balance.update(*tensors(3.0, 2.0))
    balance.update(*tensors(*bad))
    torch.testing.assert_close(balance(), torch.tensor(1.5))


@pytest.mark.parametrize("nothing", [(3.0, 0.0), (3.0, 1e-7), (0.0, 2.0), (0.0, 0.0)])
def test_without_both_gradients_nothing_is_measured(nothing):
    balance = GradientBalance(1.0)
    balance.update(*tensors(*nothing))
    assert balance() == 0
    balance.update(*tensors(3.0, 2.0))
    balance.update(*tensors(*nothing))
    torch.testing.assert_close(balance(), torch.tensor(1.5))


def test_a_student_that_equals_its_teacher_is_not_pushed_away():
    torch.manual_seed(0)
    student = toys.retinanet(norm="")
    model = Distiller(
        student=student,
        teacher=Teacher(copy.deepcopy(student), None),
        methods=Methods(m=Mimic(balance=0.5), f=FGD(balance=0.5)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(8):
        norms = gradients_at_the_neck(model, toys.batch())
        assert norms["loss_distill_m"] < 5 * norms["task"]
        assert norms["loss_distill_f"] < 5 * norms["task"]
        optimizer.zero_grad()
        sum(model(toys.batch()).values()).backward()
        optimizer.step()


def test_the_averages_are_saved():
    first, second = GradientBalance(1.0), GradientBalance(1.0)
    first.update(*tensors(3.0, 2.0))
    second.load_state_dict(first.state_dict())
    assert second() == first()


# ---- norms


def test_norms_are_of_the_gradient_over_all_maps():
    maps = [torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 2, 2).requires_grad_()]
    losses = [(maps[0] ** 3).sum() + maps[1].sin().sum(), maps[1].square().mean(), torch.zeros(())]
    found = gradient_norms(losses, [*maps, torch.zeros(1)])
    expected = [
        torch.cat([3 * maps[0].detach().flatten() ** 2, maps[1].detach().flatten().cos()]).norm(),
        (2 * maps[1].detach() / 24).norm(),
        torch.zeros(()),
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    sum(losses).backward()  # the graphs are kept
    assert all(x.grad is not None for x in maps)


def test_norms_of_gradients_below_half_precision():
    x = torch.ones(4, dtype=torch.half, requires_grad=True)
    loss = ((x * 1e-3).float() * 1e-5).sum()  # 1e-8 each, too small for half precision
    torch.testing.assert_close(
        gradient_norms([loss], [x])[0], torch.tensor(2e-8), rtol=1e-2, atol=0
    )


def test_a_neck_that_is_not_trained_is_an_error():
    with pytest.raises(ValueError, match="expected a neck that trains"):
        gradient_norms([torch.zeros(())], [torch.zeros(1, 3, 4, 4)])


# ---- in a distiller


def gradients_at_the_neck(model: Distiller, inputs) -> dict[str, float]:
    """Norms of gradients at the maps, from a separate backward pass of each loss."""
    kept = {}
    handle = model.backbone.register_forward_hook(lambda _m, _a, out: kept.update(out))
    losses = model(inputs)
    handle.remove()
    for x in kept.values():
        x.retain_grad()
    groups = {name: [loss] for name, loss in losses.items() if name.startswith("loss_distill")}
    groups["task"] = [loss for name, loss in losses.items() if name not in groups]
    norms = {}
    for name, group in groups.items():
        sum(group).backward(retain_graph=True)
        grads = [x.grad for x in kept.values() if x.grad is not None]
        norms[name] = sum((g.square().sum() for g in grads), torch.zeros(())).sqrt().item()
        for x in kept.values():
            x.grad = None
    return norms


@pytest.mark.parametrize("student", [toys.retinanet, toys.fcos, lambda: toys.rcnn(mask=False)])
def test_the_gradient_is_held_at_the_fraction(student):
    model = distiller(student, fgd=FGD(weight=7.0, balance=0.3), mimic=Mimic(balance=2.0))
    norms = gradients_at_the_neck(model, toys.batch())
    assert norms["loss_distill_fgd"] == pytest.approx(0.3 * norms["task"], rel=1e-4)
    assert norms["loss_distill_mimic"] == pytest.approx(2.0 * norms["task"], rel=1e-4)


def measured(model: Distiller, steps: int, storage) -> list[bool]:
    """Return for each step whether the balance of "m" took a measurement."""
    found = []
    update = model.distillation.m.balance.update
    model.distillation.m.balance.update = lambda *norms: found.append(True) or update(*norms)
    changed = []
    for _ in range(steps):
        found.clear()
        model(toys.batch())
        changed.append(len(found) == 1)
        storage.step()
    return changed


def test_it_is_measured_at_first_and_then_once_a_period(storage):
    model = distiller(m=Mimic(balance=0.5), balance_period=3)
    model.distillation.m.balance = GradientBalance(0.5, warmup=2)
    assert measured(model, 8, storage) == [True, True, False, True, False, False, True, False]


def test_it_is_measured_once_in_a_step_of_several_batches(storage):
    model = distiller(m=Mimic(balance=0.5))
    model.distillation.m.balance.update = lambda *norms: calls.append(norms)
    calls = []
    for _ in range(3):
        model(toys.batch())
    assert len(calls) == 1


def test_a_method_whose_schedule_starts_is_measured_again(storage):
    late = LinearParamScheduler(0.0, 1.0)
    model = distiller(m=Mimic(balance=0.5, schedule=lambda x: float(x >= 0.5) * late(x)))
    for i, progress in enumerate([0.0, 0.25, 0.5, 0.75, 0.25, 0.5]):
        storage._iter = 100 + i if i else 0
        model.loss_weights.progress = progress
        norms = gradients_at_the_neck(model, toys.batch())
        ratio = norms.get("loss_distill_m", 0.0) / norms["task"]
        assert ratio == pytest.approx(0.5 * progress if progress >= 0.5 else 0.0, rel=0.1)
    assert model.distillation.m.balance.warmup - model.distillation.m.balance._warmup_left == 1


def test_number_of_measurements_is_saved():
    first, second = GradientBalance(1.0, warmup=2), GradientBalance(1.0, warmup=2)
    first.update(*tensors(3.0, 2.0))
    first.update(*tensors(3.0, 2.0))
    second.load_state_dict(first.state_dict())
    assert not second.warming_up and GradientBalance(1.0).warming_up


def test_measuring_changes_no_gradient():
    def gradient(**fields):
        torch.manual_seed(1)
        model = distiller(mimic=Mimic(**fields))
        if "balance" in fields:
            model.distillation.mimic.balance.forward = lambda: torch.tensor(3.0)
        sum(model(toys.batch()).values()).backward()
        return [p.grad for p in model.parameters()]

    for a, b in zip(gradient(balance=0.5), gradient(weight=3.0), strict=True):
        torch.testing.assert_close(a, b)


def test_the_ratio_of_gradients_is_logged(storage):
    model = distiller(fgd=FGD(balance=0.3), mimic=Mimic(weight=1.0))
    norms = gradients_at_the_neck(model, toys.batch())
    latest = {k: v[0] for k, v in storage.latest().items()}
    assert latest["distill/fgd/gradient_ratio"] == pytest.approx(0.3, rel=1e-4)
    expected = norms["loss_distill_mimic"] / norms["task"]
    assert latest["distill/mimic/gradient_ratio"] == pytest.approx(expected, rel=1e-4)


def test_the_logged_ratio_is_the_one_that_was_trained_with(storage):
    model = distiller(m=Mimic(balance=0.3, schedule=lambda x: 0.5))
    model.loss_weights.progress = 0.0
    first = gradients_at_the_neck(model, toys.batch())
    balance = model.distillation.m.balance
    balance.task *= 3  # as if the task's gradient had been three times as large until now
    storage._iter = 20
    second = gradients_at_the_neck(model, toys.batch())
    expected = 3 * 0.3 * 0.5 * first["task"] / second["task"]
    assert storage.latest()["distill/m/gradient_ratio"][0] == pytest.approx(expected, rel=1e-3)


def test_warning_of_a_large_method_uses_gradients_if_they_are_known(caplog, storage):
    # The gradient is kept at a tenth of the task's, and the size of the losses does not matter.
    model = distiller(held=Mimic(balance=0.1), loose=Mimic(weight=1e4))
    for _ in range(10):
        model(toys.batch())
        storage._iter += model.loss_weights.log_period
    (record,) = (r for r in caplog.records if "times the student's own" in r.message)
    assert record.message.startswith("Method loose: its gradient at the neck is")


# ---- schedules


def loss(model: Distiller, progress: float) -> torch.Tensor:
    model.loss_weights.progress = progress
    return model(toys.batch())["loss_distill_m"]


def test_a_schedule_multiplies_the_weight():
    plain = distiller(m=Mimic(weight=3.0))
    expected = loss(plain, 0.0)
    plain.distillation.m.schedule = LinearParamScheduler(1.0, 0.5)
    torch.testing.assert_close(loss(plain, 0.5), 0.75 * expected)


def test_a_schedule_multiplies_the_balance():
    model = distiller(m=Mimic(balance=0.4, schedule=LinearParamScheduler(0.0, 1.0)))
    model.loss_weights.progress = 0.25
    norms = gradients_at_the_neck(model, toys.batch())
    assert norms["loss_distill_m"] == pytest.approx(0.1 * norms["task"], rel=1e-4)


def test_a_method_with_weight_zero_costs_nothing_and_keeps_its_parameters_in_the_graph():
    stop = MultiStepParamScheduler([1.0, 0.0], num_updates=2, milestones=[1])
    model = distiller(m=FGD(schedule=stop))
    model.loss_weights.progress = 0.0
    assert model(toys.batch())["loss_distill_m"] > 0
    model.loss_weights.progress = 0.5
    model.teacher.model.forward = model.teacher.model.backbone.forward = None  # must not be called
    losses = model(toys.batch())
    assert losses["loss_distill_m"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.distillation.parameters())


def test_a_schedule_needs_the_progress():
    model = distiller(m=Mimic(schedule=LinearParamScheduler(1.0, 0.5)))
    with pytest.raises(RuntimeError, match=r"methods.m.schedule: .*d2kd.engine.ScheduleProgress"):
        model(toys.batch())


def test_the_trainer_sets_the_progress():
    seen = []
    model = distiller(m=Mimic(schedule=lambda where: seen.append(where) or 1.0))
    trainer = SimpleTrainer(model, [toys.batch()] * 4, torch.optim.SGD(model.parameters(), lr=1e-3))
    trainer.register_hooks([ScheduleProgress()])
    trainer.train(0, 4)
    assert sorted(set(seen)) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "fields, error, message",
    [
        (dict(weight=-1.0), ValueError, "Mimic.weight: expected a number >= 0, found -1.0"),
        (dict(weight=float("nan")), ValueError, "Mimic.weight: expected .*, found nan"),
        (dict(weight="x"), ValueError, "Mimic.weight: expected .*, found 'x'"),
        (dict(balance=0.0), ValueError, "Mimic.balance: expected a number > 0 or None, found 0.0"),
        (dict(balance=float("inf")), ValueError, "Mimic.balance: expected .*, found inf"),
        (dict(balance=True), ValueError, "Mimic.balance: expected .*, found True"),
        (dict(schedule=0.5), TypeError, "Mimic.schedule: expected a scheduler .*, found 0.5"),
    ],
)
def test_mistakes_are_errors_that_name_them(fields, error, message):
    with pytest.raises(error, match=message):
        Mimic(**fields)


@pytest.mark.parametrize("period", [0, -1, 2.5])
def test_impossible_periods_are_errors(period):
    with pytest.raises(ValueError, match=f"balance_period: expected .*, found {period}"):
        distiller(balance_period=period)


@pytest.mark.parametrize("value", [-1.0, float("nan"), None])
def test_impossible_factors_of_a_schedule_are_errors(value):
    model = distiller(m=Mimic(schedule=lambda where: value))
    model.loss_weights.progress = 0.5
    with pytest.raises(ValueError, match=r"methods.m.schedule: expected .* at 0.500"):
        model(toys.batch())


def warnings(caplog) -> list[str]:
    return [r.message for r in caplog.records if "times the student's own" in r.message]


def test_warning_of_a_large_method_needs_several_records_in_a_row(caplog, storage, same_normalizer):
    model = distiller(m=Mimic())
    for i in range(25):
        model.distillation.m.weight = 1e-9 if i in (9, 19) else 0.1  # a ratio of about 17
        model(toys.batch())
        storage._iter += model.loss_weights.log_period
    assert 10 < storage.latest()["distill/m/ratio"][0] < 50 and not warnings(caplog)


def test_warning_of_a_method_that_is_far_too_large_comes_early_and_once(
    caplog, storage, same_normalizer
):
    model = distiller(m=Mimic(weight=1.0))
    counts = []
    for _ in range(12):
        model(toys.batch())
        storage._iter += model.loss_weights.log_period
        counts.append(len(warnings(caplog)))
    assert counts == [0] + [1] * 11
    ratio = storage.latest()["distill/m/ratio"][0]
    (message,) = warnings(caplog)
    assert message.startswith(f"Method m: its loss is {ratio:.0f} times") and ratio > 50
    assert "Set model.methods.m.balance=1.0, which" in message


def test_all_fields_of_a_method_are_known():
    import inspect

    fields = inspect.signature(FGD).parameters
    assert {"tau", "levels", "uncertainty", "weight", "balance", "schedule"} <= set(fields)
    assert not any(p.kind is p.VAR_KEYWORD for p in fields.values())
    assert isinstance(FGD(balance=0.1).balance, nn.Module)
