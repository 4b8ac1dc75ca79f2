import copy
import json

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.evaluation import figures as report
from d2kd.methods import Methods, Mimic
from tests import toys


class Tiny(nn.Module):
    """A single convolution; `calls` records which model was called, and in which mode."""

    def __init__(self, channels=4, calls=None):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=3, padding=1)
        self.calls = calls

    def forward(self, inputs):
        if self.calls is not None:
            self.calls.append((self, self.training, torch.is_grad_enabled()))
        return [self.conv(x["image"].float()[None]) for x in inputs]


def test_parameters_by_hand():
    assert report.count_parameters(Tiny()) == 3 * 3 * 3 * 4 + 4


def test_flops_by_hand():
    inputs = [{"image": torch.zeros(3, 16, 24)}]
    expected = 16 * 24 * 4 * 3 * 3 * 3  # cells x channels x multiply-adds per value
    assert report.count_gflops(Tiny(), inputs) == pytest.approx(expected / 1e9, rel=1e-12)


def test_flops_of_a_detector_count_inference():
    model = toys.retinanet()
    inputs = [{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 64, "width": 64}]
    gflops = report.count_gflops(model, inputs)
    assert model.training  # the mode is restored
    assert 0 < gflops < 1


def test_models_take_turns():
    calls = []
    models = {name: Tiny(calls=calls) for name in "abc"}
    times = report.measure_speed(models, [[{"image": torch.zeros(3, 8, 8)}]], rounds=2, warm_up=1)
    order = [next(n for n in models if models[n] is model) for model, *_ in calls]
    assert "".join(order) == "abcbcacab"
    assert {mode[1:] for mode in calls} == {(False, False)}
    assert list(times) == ["a", "b", "c"] and all(t > 0 for t in times.values())


def test_time_is_the_median_in_milliseconds(monkeypatch):
    ticks = iter([0, 1, 1.001, 2, 2.003, 3, 3.002])  # of the warm-up, only the start is read
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(ticks))
    times = report.measure_speed({"a": Tiny()}, [[{"image": torch.zeros(3, 8, 8)}]], rounds=3,
                                 warm_up=1)  # fmt: skip
    assert times["a"] == pytest.approx(2)


@pytest.fixture
def plain():
    """The config of the plain student."""
    return OmegaConf.create(
        {"model": L(toys.retinanet)(width=4), "train": {"device": "cpu"}},
        flags={"allow_objects": True},
    )


def test_a_distilled_checkpoint_gives_the_plain_student(tmp_path, plain, caplog):
    student, teacher = toys.retinanet(), toys.retinanet(channels=12)
    distiller = Distiller(
        student=student, teacher=Teacher(teacher, None), methods=Methods(mimic=Mimic())
    )
    weights = distiller.state_dict()
    assert any(k.startswith("distillation.") for k in weights)
    torch.save({"model": weights}, tmp_path / "model_final.pth")
    caplog.clear()
    model = report.load_plain(plain, tmp_path / "model_final.pth")
    assert not model.training
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


@pytest.mark.parametrize("change", ["missing", "another shape", "unexpected"])
def test_a_checkpoint_that_does_not_fit_is_an_error(tmp_path, plain, change):
    weights = copy.deepcopy(toys.retinanet().state_dict())
    name = "head.cls_score.bias"
    if change == "missing":
        del weights[name]
    elif change == "another shape":
        weights[name] = torch.zeros(7)
    else:
        weights["other"] = torch.zeros(1)
        name = "other"
    torch.save({"model": weights}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=f"1 that differ: {name}"):
        report.load_plain(plain, tmp_path / "model.pth")


class Perfect(nn.Module):
    """A detector that returns given boxes."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes = boxes

    def forward(self, inputs):
        out = Instances((32, 32))
        out.pred_boxes = Boxes(torch.tensor(self.boxes, dtype=torch.float32).reshape(-1, 4))
        out.pred_classes = torch.zeros(len(self.boxes), dtype=torch.long)
        out.scores = torch.ones(len(self.boxes))
        return [{"instances": out} for _ in inputs]


@pytest.mark.parametrize(
    "boxes, ap", [([[4, 4, 24, 24]], 100.0), ([[4, 4, 24, 17]], 40.0), ([], 0.0)]
)
def test_accuracy(tmp_path, boxes, ap, capfd):
    from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
    from detectron2.evaluation import COCOEvaluator

    coco = {
        "info": {},
        "images": [{"id": 8, "file_name": "a.png", "width": 32, "height": 32}],
        "annotations": [{"id": 1, "image_id": 8, "category_id": 1, "bbox": [4, 4, 20, 20],
                         "area": 400, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    name = "test_report"
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "coco.json"), thing_dataset_id_to_contiguous_id={1: 0},
        thing_classes=["thing"],
    )  # fmt: skip
    try:
        record = {"image_id": 8, "image": torch.zeros(3, 32, 32)}
        test = L(build_detection_test_loader)(dataset=[record], mapper=copy.copy, num_workers=0)
        cfg = OmegaConf.create(
            {"dataloader": {"test": test, "evaluator": L(COCOEvaluator)(dataset_name=name)}},
            flags={"allow_objects": True},
        )
        values, found = report.measure_accuracy(cfg, Perfect(boxes))
    finally:
        MetadataCatalog.pop(name)
        assert name not in DatasetCatalog
    # IoU 13/20 = 0.65 counts at 0.50, 0.55, 0.60 and 0.65 of ten thresholds.
    assert values["AP"] == pytest.approx(ap, abs=1e-6)
    assert values["AP50"] == pytest.approx(100.0 if boxes else 0.0)
    assert list(values) == ["AP", "AP50", "AP75"]
    assert len(found[8]) == len(boxes)
    assert capfd.readouterr().out == ""


FIGURES = dict(AP=30.84, AP50=43.6, AP75=33.0, params=1234567, gflops=0.5678, ms=12.34)


def test_table():
    lines = report.table({"teacher": FIGURES, "alone": FIGURES, "distilled": FIGURES}).splitlines()
    assert len(lines) == 5
    assert [line.split()[0] for line in lines[2:]] == ["teacher", "alone", "distilled"]
    assert lines[2].split()[1:] == ["30.8", "43.6", "33.0", "1,234,567", "0.568", "12.3"]
    assert "AP50" in lines[0] and "GFLOPs" in lines[0]


@pytest.mark.parametrize(
    "figures, words",
    [
        ((30, 10, 22), "closed 60% of the gap to the teacher: +12.0 AP"),
        ((30, 10, 32), "closed 110% of the gap"),
        ((30, 10, 10), "closed 0% of the gap"),
        ((30, 10, 9), "widened the gap to the teacher by 5%: -1.0 AP"),
        ((10, 12, 13), "no gap to close"),
    ],
)
def test_gap(figures, words):
    assert words in report.gap_sentence(*figures)
