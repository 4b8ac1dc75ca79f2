"""Compare the backbones of timm and torchvision with the same networks, called part by part."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from omegaconf import OmegaConf
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.backbones import LibraryBackbone
from d2kd.checkpoint import Checkpointer
from d2kd.methods import FGD, Methods, Mimic
from tests import toys

ALL = ["res2", "res3", "res4", "res5"]
RESNET, MOBILENET, SWIN = (f"torchvision/{n}" for n in ("resnet18", "mobilenet_v2", "swin_t"))


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


@pytest.fixture
def small_swin(monkeypatch):
    """Replace torchvision's smallest Swin, which has 28 million parameters, by a smaller one."""
    fields = dict(patch_size=[4, 4], window_size=[7, 7], embed_dim=12)
    network = torchvision.models.SwinTransformer(
        depths=[2, 2, 2, 2], num_heads=[1, 1, 2, 2], **fields
    ).eval()
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: copy.deepcopy(network))
    return network


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(1)
    return torchvision.models.resnet18().eval()


def saved(network, folder, **changes):
    weights = {**network.state_dict(), **changes}
    path = folder / "weights.pth"
    torch.save({k: v for k, v in weights.items() if v is not None}, path)
    return str(path)


def in_library(name, folder, network, out_features=ALL, **fields):
    path = saved(network, folder)
    return LibraryBackbone(name, out_features=out_features, pretrained=path, **fields).eval()


def check_maps(backbone, images, expected):
    maps, shapes = backbone(images), backbone.output_shape()
    assert list(maps) == list(shapes) == ALL
    for (level, x), y in zip(maps.items(), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        stride = 2 ** int(level[-1])
        assert shapes[level].stride == stride and shapes[level].channels == x.shape[1]
        assert x.shape[2:] == (64 // stride, 96 // stride)


def test_resnet_of_torchvision(tmp_path, images, resnet):
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    expected = [x := getattr(resnet, f"layer{i}")(x) for i in (1, 2, 3, 4)]
    check_maps(in_library(RESNET, tmp_path, resnet), images, expected)


def test_mobilenet_of_torchvision(tmp_path, images):
    network = torchvision.models.mobilenet_v2().eval()
    # A level is the last block before a strided one, not the widened map at the next block's start.
    expected = [network.features[:end](images) for end in (4, 7, 14, 19)]
    check_maps(in_library(MOBILENET, tmp_path, network), images, expected)


def test_swin_of_torchvision(tmp_path, images, small_swin):
    network = small_swin
    expected = [network.features[:end](images) for end in (2, 4, 6, 8)]
    expected[-1] = network.norm(expected[-1])
    expected = [x.permute(0, 3, 1, 2) for x in expected]
    check_maps(in_library(SWIN, tmp_path, network), images, expected)


def test_mobilenet_of_timm(tmp_path, images):
    timm = pytest.importorskip("timm")
    network = timm.create_model("mobilenetv2_050").eval()
    x = network.bn1(network.conv_stem(images))
    stages = [x := block(x) for block in network.blocks]
    expected = [stages[i] for i in (1, 2, 4, 6)]
    check_maps(in_library("timm/mobilenetv2_050", tmp_path, network), images, expected)


def test_swin_of_timm_takes_other_sizes_and_shifts_in_every_stage(tmp_path, images):
    timm = pytest.importorskip("timm")
    name = "swin_tiny_patch4_window7_224"
    small = {"embed_dim": 12, "depths": (1, 1, 1, 2), "num_heads": (1, 1, 2, 2)}
    network = timm.create_model(name, img_size=448, strict_img_size=False, **small).eval()
    x = network.patch_embed(images)
    expected = [(x := stage(x)).permute(0, 3, 1, 2) for stage in network.layers]
    backbone = in_library(f"timm/{name}", tmp_path, network, options=OmegaConf.create(small))
    check_maps(backbone, images, expected)
    assert backbone.body.layers[3].blocks[1].shift_size == (3, 3)


def detectron2s_resnet(freeze_at=0):
    with torch.device("meta"):
        stages = ResNet.make_default_stages(18, norm="BN")
        return ResNet(BasicStem(norm="BN"), stages, out_features=ALL, freeze_at=freeze_at)


def test_levels_have_names_and_shapes_of_detectron2():
    own = detectron2s_resnet().output_shape()
    assert LibraryBackbone(RESNET, out_features=ALL[::-1]).output_shape() == own


@pytest.mark.parametrize("name", [RESNET, MOBILENET, "timm/mobilenetv2_050"])
def test_every_parameter_is_used_by_a_level(name, images):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = LibraryBackbone(name, out_features=["res3", "res4"])
    assert backbone.size_divisibility == 16
    sum(x.sum() for x in backbone(images).values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("freeze_at", range(6))
def test_as_many_parameters_train_as_in_detectron2(freeze_at):
    own = detectron2s_resnet(freeze_at)
    found = LibraryBackbone(RESNET, out_features=["res5"], freeze_at=freeze_at)
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (own, found)]
    assert (counts[0] == counts[1] and counts[0] > 0) or (freeze_at == 5 and counts == [0, 0])
    kinds = [sum(isinstance(m, FrozenBatchNorm2d) for m in n.modules()) for n in (own, found)]
    assert kinds[0] == kinds[1] == [0, 1, 5, 10, 15, 20][freeze_at]


@pytest.mark.parametrize(
    "name, stem",
    [(MOBILENET, r"features\.[01]\."), (SWIN, r"features\.0\."), ("timm/convnext_atto", r"stem\.")],
)
def test_frozen_stem_ends_before_the_first_stage(name, stem, request):
    if name == SWIN:
        request.getfixturevalue("small_swin")
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = LibraryBackbone(name, freeze_at=1)
    for key, parameter in backbone.body.named_parameters():
        assert parameter.requires_grad != bool(re.match(stem, key)), key


def test_frozen_batch_norms_keep_their_statistics(images):
    backbone = LibraryBackbone(MOBILENET, freeze_at=2)
    before = copy.deepcopy(backbone.state_dict())
    backbone(images)
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(int(k.split(".")[2]) > 3 for k in changed)


@pytest.mark.parametrize("name", [RESNET, "timm/mobilenetv2_050"])
@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN"])
def test_converted_norms_compute_the_same(name, norm, images):
    if name.startswith("timm"):
        pytest.importorskip("timm")  # timm's batch norms contain the activation
    torch.manual_seed(2)
    plain = LibraryBackbone(name)
    plain(images)  # the statistics now differ from the initial ones
    torch.manual_seed(2)
    other = LibraryBackbone(name, norm=norm)
    other.load_state_dict(plain.state_dict(), strict=False)
    for x, y in zip(plain.eval()(images).values(), other.eval()(images).values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    kinds = {type(m) for m in other.modules()}
    assert not any(issubclass(k, nn.BatchNorm2d) for k in kinds)
    assert any(issubclass(k, nn.SyncBatchNorm) for k in kinds) == (norm == "SyncBN")


@pytest.mark.parametrize("name", [RESNET, "timm/mobilenetv2_050"])
def test_frozen_norms_keep_half_precision(name, images):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = LibraryBackbone(name, norm="FrozenBN")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = backbone(images)
    assert {x.dtype for x in maps.values()} == {torch.bfloat16}


def test_classifier_in_the_file_may_be_missing_or_different(tmp_path, resnet):
    for weight in (None, torch.zeros(7, 512)):
        path = saved(resnet, tmp_path, **{"fc.weight": weight, "fc.bias": None})
        backbone = LibraryBackbone(RESNET, pretrained=path)
        own, body = resnet.state_dict(), backbone.body.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in body.items())
        assert len(body) == len(own) - 2


def test_counts_are_logged(tmp_path, resnet, caplog):
    path = saved(resnet, tmp_path)
    with caplog.at_level("INFO", logger="d2kd"):
        LibraryBackbone(RESNET, out_features=["res3", "res4"], pretrained=path)
    assert (
        f"Backbone {RESNET}: 90 tensors matched, 0 missing, 0 unexpected, 0 of another shape, "
        f"32 not needed from {path}"
    ) in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer1.0.conv1.weight": None}, r"1 missing(.|\n)*missing: layer1.0.conv1.weight\n"),
        ({"layer3.6.bn1.bias": torch.zeros(1)}, r"1 unexpected(.|\n)*unexpected: layer3.6.bn1"),
        (
            {"conv1.weight": torch.zeros(64, 1, 7, 7)},
            r"found 119 tensors matched(.|\n)*conv1.weight \(64, 1, 7, 7\) in the file, \(64, 3, ",
        ),
    ],
    ids=["missing", "unexpected", "another shape"],
)
def test_any_other_mismatch_is_an_error_that_names_it(tmp_path, resnet, changes, message):
    path = saved(resnet, tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"weights.pth does not fit {RESNET}(.|\n)*{message}"):
        LibraryBackbone(RESNET, pretrained=path)


def test_safetensors_are_read(tmp_path, resnet):
    torch_files = pytest.importorskip("safetensors.torch")
    path = str(tmp_path / "model.safetensors")
    torch_files.save_file(resnet.state_dict(), path)
    body = LibraryBackbone(RESNET, pretrained=path).body
    assert all(torch.equal(v, resnet.state_dict()[k]) for k, v in body.state_dict().items())


def test_missing_and_broken_files_are_named(tmp_path):
    message = r"resnet18.pretrained: expected a file.*nowhere.*`d2kd weights`.*or False"
    with pytest.raises(FileNotFoundError, match=message):
        LibraryBackbone(RESNET, pretrained="nowhere.pth")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"half a file")
        with pytest.raises((ValueError, ImportError), match=rf"{name}"):
            LibraryBackbone(RESNET, pretrained=str(tmp_path / name))


def test_weights_that_the_library_cannot_download_are_an_error(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(OSError, match=r"pretrained=True: .*no route to host.*path of a file"):
        LibraryBackbone(RESNET, pretrained=True)


@pytest.mark.parametrize("pretrained, weights", [(True, "DEFAULT"), (False, None)])
def test_pretrained_true_requests_the_librarys_weights(monkeypatch, resnet, pretrained, weights):
    requests = []

    def get_model(name, **fields):
        requests.append((name, fields))
        return copy.deepcopy(resnet)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    body = LibraryBackbone(RESNET, pretrained=pretrained, options={"width_per_group": 64}).body
    assert requests == [("resnet18", {"weights": weights, "width_per_group": 64})]
    assert torch.equal(body.conv1.weight, resnet.conv1.weight)


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("resnet18", {}, r"name: expected one of timm/<model>, torchvision/<model>, found 'resn"),
        ("torchvision/resnet19", {}, r"resnet19: expected a network that torchvision can build"),
        (RESNET, {"options": {"freeze": 1}}, r"with options=\{'freeze': 1\}.*unexpected keyword"),
        (RESNET, {"out_features": ["p3"]}, r"out_features: expected one of res2, res3, .*'p3'"),
        (RESNET, {"out_features": []}, r"out_features: expected one of res2"),
        (RESNET, {"freeze_at": 6}, r"freeze_at: expected one of 0, 1, 2, 3, 4, 5, found 6"),
        (RESNET, {"norm": "GN"}, r"norm: expected one of '', BN, SyncBN, FrozenBN, found 'GN'"),
        ("torchvision/squeezenet1_1", {}, r"expected a map of stride 8 for 'res3', found strides"),
        ("torchvision/squeezenet1_1", {"freeze_at": 2}, r"freeze_at=2: expected a map of stride 4"),
    ],
)
def test_impossible_fields_are_errors(name, fields, message):
    with pytest.raises(ValueError, match=message):
        LibraryBackbone(name, **fields)


def test_norm_of_a_network_without_batch_norms_is_an_error(small_swin):
    with pytest.raises(ValueError, match=r"swin_t.norm: it has no batch norm, expected '', found"):
        LibraryBackbone(SWIN, norm="FrozenBN")


def test_networks_of_one_image_size_are_errors():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"timm/levit_128s: expected a network for images of any"):
        LibraryBackbone("timm/levit_128s")
    with pytest.raises(ValueError, match=r"stride 8 for 'res3', found strides \[16\]"):
        LibraryBackbone("timm/vit_tiny_patch16_224")


def test_missing_timm_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        LibraryBackbone("timm/mobilenetv2_050")


def retinanet(bottom_up):
    channels = bottom_up.output_shape()["res5"].channels
    levels = ["res3", "res4", "res5"]
    return toys.retinanet(backbone=FPN(bottom_up, levels, 8, top_block=LastLevelP6P7(channels, 8)))


@pytest.fixture
def distiller():
    return Distiller(
        student=retinanet(LibraryBackbone(MOBILENET, freeze_at=1)),
        teacher=Teacher(toys.retinanet(width=8), weights=None),
        methods=Methods(fgd=FGD(), mimic=Mimic()),
        inherit=True,
    )


def test_student_learns_from_a_resnet(distiller):
    losses = distiller(toys.batch())
    assert {"loss_distill_fgd", "loss_distill_mimic"} < set(losses)
    sum(losses.values()).backward()
    for name, p in distiller.named_parameters():
        assert (p.grad is not None and p.grad.isfinite().all()) == p.requires_grad, name
    with torch.no_grad():
        assert "instances" in distiller.eval()(toys.batch(1, (50, 70)))[0]


def test_student_inherits_all_but_its_backbone(distiller):
    student, teacher = distiller.student, distiller.teacher.model
    assert torch.equal(student.head.cls_score.weight, teacher.head.cls_score.weight)
    assert torch.equal(student.backbone.fpn_output3.weight, teacher.backbone.fpn_output3.weight)
    torch.manual_seed(3)
    own = LibraryBackbone(MOBILENET).state_dict()
    torch.manual_seed(3)
    student = retinanet(LibraryBackbone(MOBILENET))
    Distiller(student=student, teacher=distiller.teacher, inherit=True)
    for name, tensor in student.backbone.bottom_up.state_dict().items():
        assert torch.equal(tensor, own[name]), name


def test_checkpoint_loads_into_the_plain_student(distiller, tmp_path):
    Checkpointer(distiller, str(tmp_path)).save("model")
    weights = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    key = "backbone.bottom_up.body.features.18.0.weight"
    assert weights[key].shape == (1280, 320, 1, 1) and "classifier" not in " ".join(weights)
    student = retinanet(LibraryBackbone(MOBILENET, freeze_at=1))
    plain = {k: v for k, v in weights.items() if not k.startswith("distillation.")}
    assert student.load_state_dict(plain).missing_keys == []


@pytest.mark.parametrize("name", [SWIN, "timm/mobilenetv2_050"])
def test_copies_are_equal_and_independent(name, images, small_swin):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = LibraryBackbone(name, freeze_at=2).eval()
    other = copy.deepcopy(backbone)
    for x, y in zip(backbone(images).values(), other(images).values(), strict=True):
        assert torch.equal(x, y)
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert not torch.equal(backbone(images)["res5"], other(images)["res5"])


@pytest.mark.parametrize("file", ["my_mobilenet", "my_gfl"])
def test_configs_of_the_docs_work(file, tmp_path, monkeypatch):
    docs = Path("docs/backbones.md").read_text()
    snippet = re.search(rf"```python\n# {file}.py\n(.*?)```", docs, re.DOTALL).group(1)
    if "timm/" in snippet:
        pytest.importorskip("timm")
    path = tmp_path / f"{file}.py"
    path.write_text(snippet)
    config = LazyConfig.load(str(path))
    bottom_up = config.model.backbone.bottom_up
    assert bottom_up.pretrained and not config.train.init_checkpoint
    assert config.dataloader.train.mapper.image_format == "RGB"
    bottom_up.pretrained = False
    config.model.num_classes = 3
    model = instantiate(config.model)
    assert model.input_format == "RGB"
    assert model.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert all(torch.isfinite(x) for x in model([toys.image()]).values())
