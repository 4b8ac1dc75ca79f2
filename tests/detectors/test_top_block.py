"""Test the top block: P6 and P7 without a ReLU between them."""

import math

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from d2kd.detectors import TopBlock
from tests import toys


def test_levels_are_two_plain_convolutions():
    block = TopBlock(3, 4)
    x = torch.randn(2, 3, 7, 10)
    p6, p7 = block(x)
    torch.testing.assert_close(p6, F.conv2d(x, block.p6.weight, block.p6.bias, stride=2, padding=1))
    torch.testing.assert_close(
        p7, F.conv2d(p6, block.p7.weight, block.p7.bias, stride=2, padding=1)
    )
    assert p6.shape == (2, 4, 4, 5)
    assert p7.shape == (2, 4, 2, 3)
    assert (p6 < 0).any()


def test_only_the_relu_differs_from_detectron2():
    mine, theirs = TopBlock(3, 4), LastLevelP6P7(3, 4, "p5")
    assert mine.num_levels == theirs.num_levels
    assert mine.in_feature == theirs.in_feature
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(mine(x)[0], theirs(x)[0])
    assert not torch.allclose(mine(x)[1], theirs(x)[1])


def test_initial_weights_are_uniform_xavier():
    block = TopBlock(16, 32)
    for conv, inputs in ((block.p6, 16), (block.p7, 32)):
        bound = math.sqrt(6 / (9 * (inputs + 32)))
        assert 0.99 * bound < conv.weight.abs().max() <= bound
        torch.testing.assert_close(
            conv.weight.std(), torch.tensor(bound / 3**0.5), rtol=0.05, atol=0
        )
        assert not conv.bias.any()


def test_pyramid_with_the_block():
    pyramid = toys.pyramid()
    pyramid.top_block = TopBlock(8, 8)
    maps = pyramid(torch.randn(1, 3, 64, 96))
    assert list(maps) == ["p3", "p4", "p5", "p6", "p7"]
    p6, p7 = pyramid.top_block(maps["p5"])
    assert torch.equal(maps["p6"], p6)
    assert torch.equal(maps["p7"], p7)
