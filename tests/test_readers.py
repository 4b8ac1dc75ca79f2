import pytest
import torch
from torch import nn

from d2kd.readers import read
from tests import toys


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("build", [toys.retinanet, toys.fcos], ids=["RetinaNet", "FCOS"])
def test_dense_detectors_show_pyramid_and_logits(build):
    model = build().eval()
    reader = read(model)
    images = torch.randn(2, 3, 64, 96)
    seen = reader.run(images, {"features", "logits"})
    features = model.backbone(images)
    logits = model.head([features[f] for f in model.head_in_features])[0]
    assert seen.padded_size == (64, 96)
    assert list(seen.logits) == ["p3", "p4", "p5", "p6", "p7"]
    for i, level in enumerate(seen.logits):
        assert torch.equal(seen.features[level], features[level])
        assert torch.equal(seen.logits[level], logits[i])


@pytest.mark.parametrize("mask", [False, True], ids=["Faster", "Mask"])
def test_two_stage_detectors_show_their_pyramid(mask):
    reader = read(toys.rcnn(mask=mask, num_classes=5).eval())
    assert reader.num_classes == 5 and reader.offers == {"features"}
    assert [(k, v.stride) for k, v in reader.shapes.items()] == [
        (f"p{i}", 2**i) for i in range(2, 7)
    ]
    assert "p2" in reader.run(torch.randn(1, 3, 64, 64), {"features"}).features


def test_what_is_seen_is_what_the_detector_computed():
    model = toys.retinanet()
    with read(model).listen({"features"}) as seen:
        sum(model(toys.batch()).values()).backward()
    assert seen.features["p3"].requires_grad and not seen.logits


def test_hooks_live_in_the_block_only():
    model = toys.retinanet()
    with read(model).listen({"features", "logits"}):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), read(model).listen({"features"}):
        raise RuntimeError
    assert hooks(model) == 0


def test_unknown_detector_is_named_with_the_fix():
    with pytest.raises(TypeError, match=r"cannot read a Linear.*DenseDetector.*read.register"):
        read(nn.Linear(1, 1))
