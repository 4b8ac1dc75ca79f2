import os

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2kd.finite import LossWatch, non_finite_names

NAN, INF = float("nan"), float("inf")


def test_tensors_that_are_not_finite_are_named():
    state = {
        "model": {"a": torch.tensor([1.0, NAN]), "b": torch.ones(2), "c": torch.tensor(INF)},
        "optimizer": {"state": {3: {"m": torch.tensor([-INF])}}, "lists": [torch.zeros(1), NAN]},
        "integers": torch.tensor([1]),
        "empty": torch.zeros(0),
        "half": torch.tensor([7e4], dtype=torch.float32).half(),
    }
    assert set(non_finite_names(state)) == {"model.a", "model.c", "optimizer.state.3.m", "half"}
    assert non_finite_names({}) == []


def batch(name):
    instances = Instances((8, 8), gt_boxes=Boxes(torch.ones(1, 4)), gt_classes=torch.tensor([2]))
    return [
        {"file_name": name, "image_id": 5, "image": torch.zeros(3, 8, 8), "instances": instances}
    ]


def losses(cls, box=0.5):
    return {"loss_cls": torch.tensor(cls), "loss_box": torch.tensor(box, requires_grad=True)}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_message_names_loss_step_and_images_and_the_batch_is_kept(tmp_path, value):
    watch = LossWatch(str(tmp_path))
    watch.add(6, losses(1.0), batch("good.jpg"))
    with pytest.raises(FloatingPointError) as error:
        watch.add(7, losses(value), batch("bad.jpg"))
    message = str(error.value)
    assert f"iteration 7: expected finite losses, found loss_cls = {value}." in message
    assert "bad.jpg" in message and "loss_box" not in message and "good.jpg" not in message
    (name,) = os.listdir(tmp_path)
    assert name == "non_finite_iteration7_rank0.pt" and name in message
    kept = torch.load(tmp_path / name, weights_only=True)
    (image,) = kept["batch"]
    assert kept["iteration"] == 7 and image["file_name"] == "bad.jpg" and image["image_id"] == 5
    assert image["instances"]["gt_boxes"].tolist() == [[1, 1, 1, 1]]
    assert (
        image["image"].shape == (3, 8, 8) and kept["previous_batch"][0]["file_name"] == "good.jpg"
    )


def test_if_no_loss_is_finite_the_step_before_is_named_too():
    watch = LossWatch()
    watch.add(6, losses(1.0), batch("spoils.jpg"))
    with pytest.raises(FloatingPointError, match=r"bad.jpg(.|\n)*step before .*spoils.jpg"):
        watch.add(7, losses(NAN, NAN), batch("bad.jpg"))


class LateWatch(LossWatch):
    """Its losses arrive when they have been asked for `behind` times, as on a slow device."""

    def __init__(self, behind: int):
        super().__init__()
        self.behind, self.waited = behind, 0

    def _copy(self, values):
        watch, left = self, self.behind

        class Event:
            def query(self):
                nonlocal left
                left -= 1
                return left < 0

            def synchronize(self):
                watch.waited += left > 0

        return values, Event()


def test_losses_that_arrive_late_are_found_without_waiting():
    watch = LateWatch(behind=2)
    watch.add(3, losses(NAN), batch("bad.jpg"))
    watch.add(4, losses(1.0), batch("next.jpg"))
    with pytest.raises(FloatingPointError, match=r"iteration 3: .*loss_cls = nan.*bad.jpg"):
        watch.add(5, losses(1.0), batch("third.jpg"))
    assert not watch.waited


def test_check_waits_for_losses_that_have_not_arrived():
    watch = LateWatch(behind=1000)
    watch.add(3, losses(NAN), batch("bad.jpg"))
    watch.add(4, losses(1.0), batch("next.jpg"))
    with pytest.raises(FloatingPointError, match=r"iteration 3: .*loss_cls = nan.*bad.jpg"):
        watch.check()


def test_few_batches_are_kept_for_a_device_that_is_far_behind():
    watch = LateWatch(behind=1000)
    for step in range(20):
        watch.add(step, losses(1.0), batch(f"{step}.jpg"))
    assert len(watch._steps) == 8 and watch.waited == 12


def test_after_a_check_nothing_is_left():
    watch = LossWatch()
    watch.add(0, losses(1.0), batch("a.jpg"))
    watch.check()
    watch.check()


@pytest.mark.gpu
def test_watching_does_not_make_the_host_wait():
    watch = LossWatch()
    terms = {k: v.detach().cuda() for k, v in losses(1.0).items()}
    watch.add(0, terms, batch("a.jpg"))  # pinned memory is allocated
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 5):
            watch.add(step, terms, batch("a.jpg"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    watch.check()
    with pytest.raises(FloatingPointError, match="iteration 9"):
        watch.add(9, {"a": torch.tensor(NAN, device="cuda")}, batch("a.jpg"))
        watch.check()
