import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

from d2kd.backbones import LibraryBackbone
from d2kd.loading import build_detector, fuse_norms, load_detector_config
from d2kd.recipes import CONFIGS


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


def test_a_library_reads_no_weights_where_a_checkpoint_replaces_them():
    node = L(LibraryBackbone)(name="torchvision/mobilenet_v3_small", pretrained="nowhere.pth")
    assert isinstance(build_detector(node, pretrained=False).model, LibraryBackbone)
    assert node.pretrained == "nowhere.pth"  # the config stays as it is
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        build_detector(node)


def test_a_name_of_d2kds_configs_is_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, by_path = (
        load_detector_config(x) for x in ("demo/teacher.py", str(CONFIGS / "demo/teacher.py"))
    )
    assert named == by_path
    with pytest.raises(FileNotFoundError, match=r"or of d2kd, such as .* found 'demo/teachr.py'"):
        load_detector_config("demo/teachr.py")
