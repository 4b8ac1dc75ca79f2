"""A detector that is never trained: its channel order, and the fusion of its norms."""

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

from d2kd.frozen import check_input_format, fuse_norms


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "norm", [FrozenBatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)]
)
def test_a_fused_convolution_gives_the_normalized_output(norm, bias):
    conv = Conv2d(3, 4, 3, bias=bias, norm=norm, activation=torch.relu)
    for name, x in [*norm.named_parameters(), *norm.named_buffers()]:
        if name != "num_batches_tracked":
            x.data.uniform_(0.5, 1.5)
    conv.double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = conv(images)
    assert fuse_norms(nn.Sequential(conv)) == 1
    assert conv.norm is None and not conv.weight.requires_grad and not conv.bias.requires_grad
    assert torch.allclose(conv(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)])
def test_norms_that_depend_on_their_input_stay(norm):
    conv = Conv2d(3, 4, 3, norm=norm)
    assert fuse_norms(conv.eval()) == 0 and conv.norm is norm


def test_a_norm_outside_the_convolution_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    assert fuse_norms(model) == 0


def test_a_channel_order_that_nothing_says_is_warned_of(caplog):
    detector = nn.Identity()
    assert check_input_format(None, detector) == "BGR"
    assert "neither its config nor the detector says the channel order" in caplog.text
    caplog.clear()
    assert check_input_format("RGB", detector) == "RGB"
    detector.input_format = "RGB"
    assert check_input_format(None, detector) == "RGB" and not caplog.text
