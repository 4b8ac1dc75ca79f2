"""Trace the detectors to TorchScript."""

import pytest
import torch
from detectron2.export import TracingAdapter
from torch import nn

from tests import toys


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["ATSS", "GFL", "DDOD", "AutoAssign"])
def test_a_traced_model_equals_the_model_at_any_size(name):
    model = toys.point(name, test_score_thresh=0.4).eval()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapter = TracingAdapter(model, [{"image": toys.image()["image"]}])
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        for size in ((64, 64), (96, 128), (50, 40)):
            inputs = [{"image": toys.image(size=size, seed=1)["image"]}]
            found = adapter.outputs_schema(traced(inputs[0]["image"]))[0]["instances"]
            expected = model(inputs)[0]["instances"]
            assert len(expected) > 2
            assert torch.equal(found.pred_classes, expected.pred_classes)
            torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            torch.testing.assert_close(found.scores, expected.scores)
