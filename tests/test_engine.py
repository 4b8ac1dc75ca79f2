import contextlib
import itertools

import pytest
import torch
from torch import nn

from d2kd.engine import ExactResume, Trainer
from tests import toys


class Line(nn.Module):
    """A model whose loss is the mean of w . x over the batch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, batch):
        self.dtype_seen = (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        return {"loss": (torch.stack(batch) @ self.w).mean()}


def run(batches, lr=1.0, steps=1, model=None, **fields) -> Line:
    model = model or Line()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=lr), **fields)
    trainer.set_loader(batches)
    trainer.train(0, steps)
    return model


def test_accumulated_batches_equal_one_step_of_the_whole_batch():
    samples = list(torch.randn(6, 3))
    whole = run([samples])
    parts = run([samples[:2], samples[2:4], samples[4:]], accumulate=3)
    torch.testing.assert_close(parts.w, whole.w)
    torch.testing.assert_close(whole.w.detach(), -torch.stack(samples).mean(0))


def test_gradient_norm_is_clipped():
    model = run([[torch.tensor([30.0, 0.0, 40.0])]], clip_grad_norm=5.0)
    torch.testing.assert_close(model.w.detach(), torch.tensor([-3.0, 0.0, -4.0]), rtol=1e-4, atol=0)
    model = run([[torch.tensor([0.3, 0.0, 0.4])]], clip_grad_norm=5.0)
    torch.testing.assert_close(model.w.detach(), torch.tensor([-0.3, 0.0, -0.4]))


def test_forward_runs_in_the_chosen_precision():
    sample = [[torch.ones(3)]]
    assert run(sample, amp_dtype=torch.bfloat16).dtype_seen == torch.bfloat16
    assert run(sample).dtype_seen == torch.float32


def test_mean_losses_are_recorded_once_a_period_and_at_the_end():
    recorded = []

    class Trainee(Line):
        def forward(self, batch):
            return {"loss": batch[0].sum() + 0 * self.w.sum()}

    model = Trainee()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), gather_period=3)
    trainer._write_metrics = lambda losses, seconds: recorded.append(
        (trainer.iter, losses["loss"].item())
    )
    trainer.set_loader([[torch.tensor([float(i)])] for i in (1, 2, 6, 4, 5, 6, 8, 10)])
    trainer.train(0, 8)
    assert recorded == [(2, 3.0), (5, 5.0), (7, 9.0)]


def test_a_loss_that_is_not_finite_is_an_error_in_its_own_step():
    # The second of four batches, long before the record after the fourth.
    batches = [[torch.tensor([x, 0.0, 0.0])] for x in (1.0, float("nan"), 1.0, 1.0)]
    with pytest.raises(FloatingPointError, match=r"iteration 1: expected finite .* loss = nan"):
        run(batches, steps=4, gather_period=4)


def test_a_run_can_resume_with_and_without_amp():
    plain = Trainer(Line(), torch.optim.SGD(Line().parameters(), lr=1.0))
    model = Line()
    amp = Trainer(model, torch.optim.SGD(model.parameters(), lr=1.0), amp_dtype=torch.float16)
    assert "grad_scaler" in amp.state_dict() and "grad_scaler" not in plain.state_dict()
    amp.load_state_dict(plain.state_dict())
    plain.load_state_dict(amp.state_dict())


def test_running_normalizers_of_dense_detectors_are_saved():
    model = toys.retinanet()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.loss_normalizer = 42.5
    state = trainer.state_dict()
    model.loss_normalizer = 1.0
    trainer.load_state_dict(state)
    assert model.loss_normalizer == 42.5


def test_dense_losses_under_amp_get_fp32_predictions():
    # Detectron2's FCOS raises a RuntimeError for predictions in half precision.
    model = toys.fcos()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    trainer = Trainer(model, sgd, amp_dtype=torch.bfloat16)
    # On maps of one cell (P7's input), oneDNN's bf16 gradient reads uninitialized memory.
    trainer.set_loader([toys.batch(size=(256, 256)) for _ in range(2)])
    trainer.train(0, 2)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_each_segment_begins_with_its_own_seed():
    drawn = {}

    class Draw(Line):
        def forward(self, batch):
            drawn.setdefault(storage_step(), []).append(torch.rand(1).item())
            return super().forward(batch)

    def storage_step():
        from detectron2.utils.events import get_event_storage

        return get_event_storage().iter

    def train(start):
        model = Draw()
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
        started = []

        def loader(step, seed):
            started.append(step)
            return itertools.repeat([torch.ones(3)])

        trainer.register_hooks([ExactResume(loader, period=3, seed=11)])
        trainer.train(start, 7)
        return started

    assert train(0) == [0, 3, 6]
    assert train(3) == [3, 6]
    assert all(len(set(drawn[step])) == 1 for step in (3, 4, 5, 6))  # the same in both runs
    assert len({v[0] for v in drawn.values()}) == 7


def test_random_seed_is_kept_for_a_resumed_run():
    first, second = ExactResume(None, 3), ExactResume(None, 3)
    second.load_state_dict(first.state_dict())
    assert second.seed == first.seed


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(accumulate=0), "train.accumulate: expected at least 1, found 0"),
        (dict(clip_grad_norm=-1.0), "train.clip_grad_norm: expected >= 0, found -1"),
    ],
)
def test_bad_fields_are_errors_that_name_them(fields, message):
    with pytest.raises(ValueError, match=message), contextlib.suppress(StopIteration):
        run([], **fields)
