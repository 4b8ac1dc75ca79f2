"""TorchScript and ONNX files give what the Detectron2 model gives, also at other sizes."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from d2kd.export import OnnxDetector
from d2kd.export.tracing import check_supported, write_onnx, write_torchscript
from tests import toys
from tests.export.conftest import make, noise

ALL = [
    *("ATSS", "GFL", "DDOD", "AutoAssign", "retinanet", "fcos", "rcnn"),
    pytest.param("cascade", marks=pytest.mark.slow),
]
# Fewer than 1000 locations, the limit of candidates, on each level; more; and sizes that no stride
# divides.
SIZES = [(160, 192), (352, 416), (75, 90)]


def detect(model, image: torch.Tensor) -> Instances:
    with torch.no_grad():
        return model([{"image": image}])[0]["instances"]


def assert_same(found: Instances, expected: Instances) -> None:
    """Same detections in any order, by brute force over all pairs."""
    assert len(found) == len(expected)
    free = list(range(len(found)))
    for i in range(len(expected)):
        for j in free:
            box = found.pred_boxes.tensor[j] - expected.pred_boxes.tensor[i]
            same = box.abs().max() < 0.01 and abs(found.scores[j] - expected.scores[i]) < 1e-4
            if same and found.pred_classes[j] == expected.pred_classes[i]:
                free.remove(j)
                break
        else:
            raise AssertionError(f"no detection equals {expected[i]}")


@pytest.mark.parametrize("name", ALL)
def test_torchscript_equals_the_model_at_each_size(name, tmp_path):
    model = make(name)
    write_torchscript(model, noise(*SIZES[0]), tmp_path / "model.ts")
    script = torch.jit.load(str(tmp_path / "model.ts"))
    for size in SIZES:
        image = noise(*size, seed=1)
        expected = detect(model, image)
        assert len(expected) > 5
        boxes, scores, classes = script(image)
        fields = dict(pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        assert_same(Instances(size, **fields), expected)


@pytest.mark.parametrize("name", ALL)
def test_onnx_equals_the_model_at_each_size(name, onnx, tmp_path):
    model = make(name)
    write_onnx(model, noise(*SIZES[0]), tmp_path / "model.onnx")
    detector = OnnxDetector(tmp_path / "model.onnx", threads=1)
    for size in SIZES:
        image = noise(*size, seed=1)
        expected = detect(model, image)
        assert len(expected) > 5
        assert_same(detect(detector, image), expected)


@pytest.mark.parametrize(
    "name", [x for x in ALL if x != "DDOD"]
)  # it has no DeformConv of opset 19
def test_openvino_reads_the_onnx_file(name, onnx, tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs pip install openvino")
    model, path = make(name), tmp_path / "model.onnx"
    write_onnx(model, noise(*SIZES[0]), path)
    fp32 = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", fp32)
    for size in SIZES:
        image = noise(*size, seed=1)
        expected = detect(model, image)
        assert len(expected) > 5
        found = compiled({"image": image.numpy()})
        boxes, scores, classes = (torch.as_tensor(x) for x in found.to_tuple())
        fields = dict(pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        assert_same(Instances(size, **fields), expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_a_batch_equals_the_model_on_each_image(name, kind, tmp_path, request):
    model, path, batch = make(name), tmp_path / "model", 2
    example = torch.stack([noise(*SIZES[0])] * batch)
    if kind == "onnx":
        request.getfixturevalue("onnx")
        write_onnx(model, example, path)
        detector = OnnxDetector(path, threads=1)
        assert detector.batch == batch
    else:
        write_torchscript(model, example, path)
        script = torch.jit.load(str(path))
    for size in SIZES:
        images = [noise(*size, seed=i) for i in range(1, 1 + batch)]
        if kind == "onnx":
            found = [x["instances"] for x in detector([{"image": x} for x in images])]
        else:
            *outputs, index = script(torch.stack(images))
            assert index.dtype == torch.int64
            parts = [[x[index == i] for x in outputs] for i in range(batch)]
            found = [
                Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
                for boxes, scores, classes in parts
            ]
        for one, image in zip(found, images, strict=True):
            expected = detect(model, image)
            assert len(expected) > 5
            assert_same(one, expected)


def test_the_model_stays_in_evaluation_mode(onnx, tmp_path):
    model = make("retinanet")
    write_onnx(model, noise(64, 64), tmp_path / "model.onnx")
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Conv2d(3, 3, 1), "found Conv2d"),
        (toys.rcnn(mask=True), "found GeneralizedRCNN with a mask head"),
    ],
)
def test_other_models_are_refused(model, found):
    with pytest.raises(ValueError, match=rf"expected a detector of boxes.* {found}\."):
        check_supported(model)
