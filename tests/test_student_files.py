import pytest
import torch
from detectron2.engine import HookBase
from torch import nn

from d2kd.engine import Trainer
from d2kd.student_files import BestStudent, FinalStudent, changes_student, closing_line


class Line(nn.Module):
    """A model whose only weight counts the steps."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return {"loss": -self.w}


class Score(HookBase):
    """Gives the metric of each step."""

    def __init__(self, scores):
        self.scores = scores

    def after_step(self):
        self.trainer.storage.put_scalar("bbox/AP", self.scores[self.trainer.iter])


def run(folder, scores, start=0, stop=None, metric="bbox/AP") -> None:
    model = Line()
    nn.init.constant_(model.w, float(start))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=1.0))
    best = BestStudent(model, str(folder), "best", metric, eval_period=1)
    trainer.register_hooks([Score(scores), best, FinalStudent(model, str(folder), "final")])
    trainer.set_loader([None] * len(scores))
    trainer.train(start, stop or len(scores))


def weight(folder, name) -> float:
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]["w"].item()


def test_best_and_last_are_kept(tmp_path):
    run(tmp_path, [1.0, 5.0, 3.0])
    assert (weight(tmp_path, "best"), weight(tmp_path, "final")) == (2, 3)
    assert not (tmp_path / "last_checkpoint").exists()  # --resume must not start from these


@pytest.mark.parametrize(("scores", "best"), [([1.0, 5.0, 3.0, 4.0], 2), ([1.0, 5.0, 3.0, 6.0], 4)])
def test_resumed_run_knows_its_best(tmp_path, scores, best):
    run(tmp_path, scores, stop=2)
    run(tmp_path, scores, start=2)
    assert weight(tmp_path, "best") == best


def test_best_of_a_step_that_is_repeated_is_not_counted(tmp_path):
    run(tmp_path, [1.0, 2.0, 9.0], stop=3)
    run(tmp_path, [1.0, 2.0, 4.0, 3.0], start=1)  # killed after its third step
    assert weight(tmp_path, "best") == 3


def test_new_run_replaces_the_best_of_an_earlier_one(tmp_path):
    run(tmp_path, [9.0, 9.0])
    run(tmp_path, [float("nan")])  # without a best
    assert not (tmp_path / "best.pth").exists()
    run(tmp_path, [1.0, 2.0])
    assert weight(tmp_path, "best") == 2


@pytest.mark.parametrize("metric", ["bbox/APxx", "ema/bbox/APxx"])
def test_metric_that_is_not_given_stops_at_the_first_evaluation(tmp_path, metric):
    message = r"train.best_metric: expected .* \(bbox/AP\), found 'bbox/APxx'"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, [1.0, 5.0, 3.0], metric=metric)
    run(tmp_path, [1.0], metric=metric)  # at the end, the student is still saved
    assert weight(tmp_path, "final") == 1


def test_overrides_that_a_student_needs_later():
    others = ["train.max_iter=3", "optimizer.lr=1", "dataloader.train.total_batch_size=2"]
    others += ["model.teacher.weights=a.pth", "model.methods.pkd.weight=1"]
    others += ["model.student.backbone.bottom_up.pretrained=False"]
    assert not changes_student(others)
    for needed in ("model.num_classes=3", "model.student.num_classes=3", "dataloader.test.x=1"):
        assert changes_student([*others, needed])


def test_the_last_line_says_only_what_is_known():
    weights = "output/x/model_final.pth"
    look = f"To look at it: d2kd predict 'my config.py' --weights {weights} --images IMAGES"
    line = closing_line("my config.py", weights, {"bbox/AP": (32.14, 6)})
    assert line.startswith(f"Finished: {weights} (AP 32.1). {look}")
    line = closing_line("my config.py", weights, {"bbox/AP": (float("nan"), 6)})
    assert line.startswith(
        f"Finished: {weights} (no AP: no detections, or no boxes to find). {look}"
    )
    assert closing_line("c.py", weights, {"sem_seg/mIoU": (50.0, 6)}) == f"Finished: {weights}."
