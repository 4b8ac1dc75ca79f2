"""An ONNX file in Detectron2's interface."""

from __future__ import annotations

import sys

import pytest
import torch

from d2kd.export import OnnxDetector
from d2kd.export.tracing import write_onnx
from tests.export.conftest import make, noise


@pytest.fixture
def file(onnx, tmp_path):
    model, path = make("retinanet"), tmp_path / "model.onnx"
    write_onnx(model, noise(64, 96), path, {"classes": ["a", "b", "c"], "input_format": "RGB"})
    return model, path


def test_boxes_are_in_pixels_of_the_picture(file):
    model, path = file
    inputs = [
        {"image": noise(64, 96, seed=1), "height": 128, "width": 288},
        {"image": noise(80, 64, seed=2)},
    ]
    with torch.no_grad():
        # One by one: RetinaNet also detects in the padding of a batch.
        expected = [model([one])[0] for one in inputs]
    found = OnnxDetector(path)(inputs)
    for one, other in zip(found, expected, strict=True):
        one, other = one["instances"], other["instances"]
        assert one.image_size == other.image_size
        assert len(one) == len(other) > 0
        order, order_of_other = (x.scores.argsort(descending=True) for x in (one, other))
        torch.testing.assert_close(
            one.scores[order], other.scores[order_of_other], atol=1e-5, rtol=0
        )
        boxes = one.pred_boxes.tensor[order], other.pred_boxes.tensor[order_of_other]
        torch.testing.assert_close(*boxes, atol=1e-3, rtol=0)
    assert found[0]["instances"].pred_boxes.tensor[:, 2].max() > 96


def test_a_batch_of_any_number_and_sizes_of_images(onnx, tmp_path):
    model, path = make("retinanet"), tmp_path / "model.onnx"
    write_onnx(model, torch.stack([noise(64, 96)] * 2), path)
    detector = OnnxDetector(path)
    sizes = [(64, 96), (80, 64), (64, 96), (64, 96)]  # the second image, and the last, are alone
    inputs = [{"image": noise(*size, seed=i)} for i, size in enumerate(sizes)]
    inputs[0].update(height=128, width=192)
    with torch.no_grad():
        expected = [model([one])[0]["instances"] for one in inputs]
    found = [x["instances"] for x in detector(inputs)]
    assert [x.image_size for x in found] == [(128, 192), *sizes[1:]]
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 0
        scores = [x.scores.sort(descending=True).values for x in (one, other)]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8)])
def test_an_image_of_another_type_or_shape_is_refused(file, image):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(3, height, width\), found"):
        OnnxDetector(file[1])([{"image": image}])


def test_classes_and_order_of_channels_are_in_the_file(file):
    detector = OnnxDetector(file[1])
    assert detector.classes == ("a", "b", "c") and detector.input_format == "RGB"


def test_mistakes_are_named(onnx, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"expected an \.onnx file, found none at 'no\.onnx"
    ):
        OnnxDetector("no.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text.onnx: expected an ONNX file that onnxruntime can"):
        OnnxDetector(tmp_path / "text.onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [x], [y])
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match=r"expected the input image and .* found x, y"):
        OnnxDetector(tmp_path / "other.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"package onnxruntime, found none\. Run `pip install"):
        OnnxDetector("no.onnx")
