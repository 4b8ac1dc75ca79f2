"""Test the shapes, names, initial values and levels of the shared head."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import nn

from d2kd.detectors import PointHead

LEVELS = [ShapeSpec(channels=32)] * 3


def head(**fields) -> PointHead:
    return PointHead(**{"input_shape": LEVELS, "num_classes": 5, "conv_dims": [32, 32], **fields})


def features() -> list[torch.Tensor]:
    return [torch.randn(2, 32, n, n + 1) for n in (6, 3, 1)]


def test_shapes():
    shapes = [[tuple(x.shape[1:]) for x in maps] for maps in head(box_channels=68)(features())]
    assert shapes == [[(c, n, n + 1) for n in (6, 3, 1)] for c in (5, 68, 1)]


def test_without_a_quality_branch():
    model = head(quality=False)
    assert len(model(features())) == 2
    assert not any(name.startswith("quality") for name in model.state_dict())


def test_towers_equal_detectron2s():
    # The head of FCOS has the towers and predictors of RetinaNet, and a centerness branch.
    theirs = FCOSHead(input_shape=LEVELS, num_classes=5, conv_dims=[32, 32], norm="GN")
    mine = head(conv_bias=True)
    state = {k.replace("ctrness", "quality"): v for k, v in theirs.state_dict().items()}
    found = mine.load_state_dict(state, strict=False)
    assert found.missing_keys == ["scales"]
    assert not found.unexpected_keys
    x = features()
    for maps, expected in zip(mine(x), theirs(x), strict=True):
        for level, level_expected in zip(maps, expected, strict=True):
            torch.testing.assert_close(level, level_expected)


def test_blocks_end_with_a_relu_that_is_not_in_place():
    for tower in (head().cls_subnet, head().bbox_subnet):
        assert [type(layer).__name__ for layer in tower] == ["Conv2d", "GroupNorm", "ReLU"] * 2
        assert not any(layer.inplace for layer in tower if isinstance(layer, nn.ReLU))
    assert [type(layer).__name__ for layer in head(norm="").cls_subnet] == ["Conv2d", "ReLU"] * 2


def test_initial_values():
    model = head(conv_bias=True, prior_prob=0.02, box_bias=4.0)
    torch.testing.assert_close(
        model.cls_score.bias.sigmoid(), torch.full((5,), 0.02), rtol=1e-4, atol=0
    )
    assert (model.bbox_pred.bias == 4).all()
    assert (model.scales == 1).all()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 7
    for conv in convs:
        assert 0.008 < conv.weight.std() < 0.012
    for name in ("cls_subnet.0.bias", "bbox_subnet.3.bias", "quality.bias"):
        assert not model.get_parameter(name).any()
    assert head().cls_subnet[0].bias is None


def test_scales_multiply_the_boxes_of_their_level():
    model, x = head(), features()
    before = model(x)
    with torch.no_grad():
        model.scales.copy_(torch.tensor([1.0, 2.0, -3.0]))
    after = model(x)
    for level, scale in enumerate((1, 2, -3)):
        torch.testing.assert_close(after[1][level], scale * before[1][level])
        for part in (0, 2):
            assert torch.equal(after[part][level], before[part][level])


def test_convolutions_can_be_replaced():
    class Pointwise(PointHead):
        def make_conv(self, index, in_channels, out_channels):
            if index:
                return super().make_conv(index, in_channels, out_channels)
            return nn.Conv2d(in_channels, out_channels, 1)

    model = Pointwise(input_shape=LEVELS, num_classes=5, conv_dims=[32, 32])
    for tower in (model.cls_subnet, model.bbox_subnet):
        sizes = [layer.kernel_size for layer in tower if isinstance(layer, nn.Conv2d)]
        assert sizes == [(1, 1), (3, 3)]


@pytest.mark.parametrize(
    "fields",
    [
        dict(input_shape=[ShapeSpec(channels=32), ShapeSpec(channels=16)]),
        dict(conv_dims=[]),
        dict(input_shape=[]),
    ],
)
def test_levels_that_do_not_fit_are_an_error(fields):
    with pytest.raises(ValueError, match="levels of the same channels and at least one conv"):
        head(**fields)


def test_another_number_of_levels_is_an_error():
    with pytest.raises(ValueError, match="expected 3 levels, as in input_shape, found 2"):
        head()(features()[:2])
