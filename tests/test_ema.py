import pytest
import torch
from torch import nn

from d2kd.ema import EMA
from d2kd.engine import Trainer


class Line(nn.Module):
    """A model whose only weight moves by 1 in each step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("limit", torch.tensor(float("inf")))

    def forward(self, batch):
        self.count += 1
        return {"loss": -self.w}


def trainer_of(model: Line, decay: float) -> tuple[Trainer, EMA]:
    trainer, ema = Trainer(model, torch.optim.SGD(model.parameters(), lr=1.0)), EMA(model, decay)
    trainer.register_hooks([ema])
    trainer.set_loader([None] * 9)
    return trainer, ema


def test_average_equals_the_recursion():
    trainer, ema = trainer_of(Line(), decay=0.2)
    trainer.train(0, 3)
    # The weight is 1, 2, 3. The first steps keep 1/10, 2/11 and then at most 0.2 of the average.
    expected = 0.0
    for kept, w in ((1 / 10, 1), (2 / 11, 2), (0.2, 3)):
        expected = kept * expected + (1 - kept) * w
    assert ema.model.w.item() == pytest.approx(expected)
    assert ema.model.count == 3 and ema.model.limit == float("inf")


def test_average_begins_with_the_weights_that_were_loaded_after_the_hook_was_made():
    model = Line()
    trainer, ema = trainer_of(model, decay=0.9)
    nn.init.constant_(model.w, 10.0)
    trainer.train(0, 1)
    assert ema.model.w.item() == pytest.approx(0.1 * 10 + 0.9 * 11)


def test_saved_average_continues_exactly():
    whole, expected = trainer_of(Line(), decay=0.9)
    whole.train(0, 4)
    first, _ = trainer_of(Line(), decay=0.9)
    first.train(0, 2)
    rest, ema = trainer_of(Line(), decay=0.9)
    rest.load_state_dict(first.state_dict())
    rest.model.load_state_dict(first.model.state_dict())
    rest.train(2, 4)
    assert torch.equal(ema.model.w, expected.model.w)


def test_another_decay_of_a_resumed_run_is_told(caplog):
    state = EMA(Line(), 0.9).state_dict()
    EMA(Line(), 0.9).load_state_dict(state)
    assert not caplog.records
    EMA(Line(), 0.5).load_state_dict(state)
    assert "train.ema.decay=0.9, the config has 0.5" in caplog.text


def test_average_of_another_detector_is_refused():
    ema = EMA(Line(), 0.9)
    with pytest.raises(ValueError, match=r"train.ema: expected an average of this config's"):
        ema.load_state_dict({"updates": 1, "tensors": {"other": torch.zeros(1)}})


def synchronized(rank: int, folder: str) -> None:
    """One of two processes, whose buffers differ."""
    file = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=file, rank=rank, world_size=2)
    model = Line()
    ema = EMA(model, 0.9)
    model.count.fill_(rank + 5)
    ema.model.count.fill_(rank + 7)
    ema.synchronize()
    torch.save([model.count, ema.model.count], f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_get_the_buffers_of_the_first(tmp_path):
    torch.multiprocessing.spawn(synchronized, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        counts = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert [int(x) for x in counts] == [5, 7]


@pytest.mark.parametrize("decay", [0, 1, -0.1])
def test_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"train.ema.decay: expected a number > 0 and < 1"):
        EMA(Line(), decay)
