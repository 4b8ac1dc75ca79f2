"""Teachers without a detector: their maps equal the library's own, on normalized pixels."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from torchvision.models import get_model

from d2kd import Distiller, FeatureTeacher
from d2kd.backbones import LibraryBackbone, PatchBackbone, is_patch_network, pixel_statistics
from d2kd.methods import FGD, PFI, PGD, PKD, CrossKD, Methods, Mimic, RankMimic
from tests import toys

timm = pytest.importorskip("timm")

VIT, CONVNEXT = "timm/vit_tiny_patch16_224", "timm/convnext_atto.d2_in1k"


@pytest.fixture(autouse=True)
def small_vit(monkeypatch):
    """Replace timm's ViT-Ti by one with two blocks, which is built in milliseconds."""
    build = timm.create_model

    def create_model(name, **options):
        if not name.startswith("vit_tiny"):
            return build(name, **options)
        options.pop("pretrained")
        if set(options) - {"dynamic_img_size", "patch_size"}:
            raise TypeError  # as timm does for options that a network does not have
        small = dict(patch_size=16, img_size=112, embed_dim=24, depth=2, num_heads=2, num_classes=5)
        return timm.models.VisionTransformer(**{**small, **options})

    monkeypatch.setattr(timm, "create_model", create_model)


def vit(**options):
    return FeatureTeacher(VIT, None, options=options)


def show(teacher, inputs, padded_size=(64, 64), input_format="RGB"):
    return teacher(inputs, input_format=input_format, padded_size=padded_size).features


def normalized(image, mean, std):
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_patches_are_the_normed_output_of_the_last_block():
    teacher, (x,) = vit(), toys.batch(1, size=(48, 64))
    network = teacher.model.body.body
    pixels = normalized(x["image"], [127.5] * 3, [127.5] * 3)[None]  # timm's statistics of ViT-Ti
    with torch.no_grad():
        tokens = network.norm(network.blocks(network._pos_embed(network.patch_embed(pixels))))
    expected = tokens[:, 1:].mT.reshape(1, 24, 3, 4)  # without the class token
    torch.testing.assert_close(show(teacher, [x], (48, 64))["patches"], expected)


def test_maps_of_a_pyramid_equal_the_librarys():
    teacher, (x,) = FeatureTeacher(CONVNEXT, None), toys.batch(1)
    network = timm.create_model("convnext_atto", pretrained=False).eval()
    network.load_state_dict(teacher.model.body.body.state_dict(), strict=False)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    with torch.no_grad():
        expected = network.forward_intermediates(
            normalized(x["image"], mean, std)[None], intermediates_only=True
        )
    for level, y in zip(("res3", "res4", "res5"), expected[1:], strict=True):
        torch.testing.assert_close(show(teacher, [x])[level], y)


def test_it_sees_rgb_whatever_the_loader_gives():
    teacher, inputs = vit(), toys.batch()
    turned = [{**x, "image": x["image"].flip(0)} for x in inputs]
    rgb = show(teacher, inputs)["patches"]
    assert torch.equal(rgb, show(teacher, turned, input_format="BGR")["patches"])
    assert not torch.equal(rgb, show(teacher, inputs, input_format="BGR")["patches"])


def test_patches_of_14_pixels_get_the_stride_16():
    teacher, (x,) = vit(patch_size=14), toys.batch(1)
    assert teacher.model.scale == 14 / 16 and teacher.divisibility == 16
    assert teacher.reader.shapes["patches"].stride == 16
    pixels = normalized(x["image"], [127.5] * 3, [127.5] * 3)[None]
    resized = F.interpolate(pixels, size=(56, 56), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = teacher.model.body(resized)["patches"]
    assert expected.shape[-2:] == (4, 4)
    torch.testing.assert_close(show(teacher, [x])["patches"], expected)


def test_scale_changes_the_stride_and_the_size_of_the_map():
    teacher = FeatureTeacher(VIT, None, scale=2)
    assert teacher.reader.shapes["patches"].stride == teacher.divisibility == 8
    assert show(teacher, toys.batch(), (64, 72))["patches"].shape == (2, 24, 8, 9)


def test_images_are_padded_to_whole_patches():
    # 40 x 50 pixels: the third row and the fourth column of patches are only partly in the image.
    assert show(vit(), toys.batch(size=(40, 50)), (40, 50))["patches"].shape == (2, 24, 3, 4)


@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_weights_of_a_file_are_loaded(name, tmp_path):
    network = timm.create_model(name.partition("/")[2].partition(".")[0], pretrained=False)
    path = str(tmp_path / "weights.pth")
    torch.save(network.state_dict(), path)
    own = network.state_dict()
    loaded = FeatureTeacher(name, path).model.body.body.state_dict()
    assert loaded and all(torch.equal(own[key], value) for key, value in loaded.items())


def test_a_file_of_another_network_is_an_error(tmp_path):
    path = str(tmp_path / "weights.pth")
    torch.save({"blocks.0.norm1.weight": torch.ones(24)}, path)
    with pytest.raises(ValueError, match=r"does not fit timm/vit_tiny.*missing"):
        FeatureTeacher(VIT, path)


@pytest.mark.parametrize(
    "name, mean",
    [
        ("timm/convnext_tiny.dinov3_lvd1689m", 123.675),
        ("timm/vit_base_patch16_224.augreg_in21k", 127.5),
        ("torchvision/convnext_tiny", 123.675),
    ],
)
def test_statistics_are_those_of_the_librarys_data_config(name, mean):
    assert pixel_statistics(name)[0][0] == pytest.approx(mean)


def test_statistics_can_be_given():
    given = dict(pixel_mean=[1.0, 2.0, 3.0], pixel_std=[4.0, 5.0, 6.0])
    (x,) = toys.batch(1)
    network = FeatureTeacher(VIT, None, **given).model
    found = network.preprocess_image([x]).tensor[0]
    torch.testing.assert_close(found, normalized(x["image"], *given.values()))


@pytest.mark.parametrize(
    "fields",
    [
        dict(pixel_mean=[0.485, 0.456, 0.406], pixel_std=[0.229, 0.224, 0.225]),
        dict(pixel_mean=[0.485, 0.456, 0.406]),
        dict(pixel_std=[0.229, 0.224, 0.225]),
        dict(pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1]),
    ],
)
def test_statistics_of_pixels_from_0_to_1_are_refused(fields):
    with pytest.raises(ValueError, match=r"expected values for pixels in \[0, 255\], found"):
        FeatureTeacher(VIT, None, **fields)


def test_a_std_of_1_with_a_mean_of_255_levels_is_fine():
    FeatureTeacher(VIT, None, pixel_mean=[123.7, 116.3, 103.5], pixel_std=[1, 1, 1])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("timm/vit_small_patch16_dinov3.lvd1689m", True),
        ("timm/vit_small_patch14_dinov2", True),
        ("timm/convnext_tiny", False),
        ("torchvision/resnet18", False),
        ("timm/no_such_network", False),
    ],
)
def test_plain_transformers_are_told_from_pyramids(name, expected):
    assert is_patch_network(name) == expected


@pytest.mark.parametrize(
    "method, teacher, levels",
    [
        (L(PKD)(), VIT, ["p4"]),
        (L(Mimic)(levels={"p3": "patches", "p5": "patches"}), VIT, ["p3", "p5"]),
        (L(FGD)(levels={"p4": "res4"}), CONVNEXT, ["p4"]),
        (L(PKD)(), CONVNEXT, ["p3", "p4", "p5"]),
    ],
)
def test_feature_methods_learn_from_it(method, teacher, levels):
    config = L(Distiller)(
        student=L(toys.retinanet)(),
        teacher=L(FeatureTeacher)(backbone=teacher, weights=None),
        methods=L(Methods)(it=method),
    )
    model = instantiate(config).train()
    with EventStorage():
        losses = model(toys.batch())
    losses["loss_distill_it"].backward()
    assert [pair.student for pair in model.distillation.it.pairs] == levels
    for level in levels:
        gradient = getattr(model.student.backbone, f"fpn_output{level[1:]}").weight.grad
        assert gradient.isfinite().all() and gradient.any()


def test_the_student_starts_as_with_any_teacher():
    state = torch.get_rng_state()
    vit()
    assert torch.equal(torch.get_rng_state(), state)


def test_its_weights_are_in_no_checkpoint_and_frozen():
    teacher = vit()
    model = Distiller(student=toys.retinanet(), teacher=teacher, methods=Methods(pkd=PKD()))
    assert not any("body" in key for key in model.state_dict())
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_autocast_gives_maps_of_full_precision():
    maps = show(FeatureTeacher(VIT, None, dtype="bfloat16"), toys.batch())
    assert maps["patches"].dtype == torch.float32


@pytest.mark.parametrize(
    "method, message",
    [
        (CrossKD(block=1), r"CrossKD: expected a teacher whose head.*found timm/vit_tiny"),
        (PGD(), r"PGD: expected student and teacher with two towers each.*timm/vit_tiny"),
        (PGD(on="neck"), r"PGD needs .* of the teacher.*timm/vit_tiny"),
        (RankMimic(), r"RankMimic needs .* of the teacher.*found timm/vit_tiny"),
        (PFI(), r"PFI needs .* of the teacher.*found timm/vit_tiny"),
    ],
)
def test_a_method_that_needs_a_head_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        Distiller(student=toys.retinanet(), teacher=vit(), methods=Methods(kd=method))


def test_inheritance_is_refused():
    with pytest.raises(ValueError, match=r"inherit=True: expected tensors.*found none"):
        Distiller(student=toys.retinanet(), teacher=vit(), methods=Methods(pkd=PKD()), inherit=True)


def test_it_has_no_detections():
    with pytest.raises(ValueError, match=r"teacher timm/vit_tiny.*expected a detector"):
        vit().detect(toys.batch(), input_format="RGB")


@pytest.mark.parametrize(
    "fields, error, message",
    [
        (dict(backbone="resnet18"), ValueError, r"name: expected one of timm/<model>"),
        (
            dict(weights="gone.pth"),
            FileNotFoundError,
            r"FeatureTeacher.weights: expected a file at 'gone.pth', .* or None for random weights",
        ),
        (dict(weights=""), ValueError, r"FeatureTeacher.weights: expected the path.*found ''"),
        (dict(weights=3), ValueError, r"FeatureTeacher.weights: expected the path.*found 3"),
        (dict(scale=0.3), ValueError, r"scale of timm/vit_tiny.*found 0.3.*53.3333.*scale=0.5"),
        (dict(scale=-1), ValueError, r"FeatureTeacher.scale: expected"),
        (dict(out_features=["res4"]), ValueError, r"out_features: expected None.*\['res4'\]"),
        (dict(pixel_mean=[1.0]), ValueError, r"pixel_mean: expected three numbers, found \[1.0\]"),
        (dict(pixel_mean=123.0), ValueError, r"pixel_mean: expected three numbers, found 123.0"),
        (dict(pixel_mean=[]), ValueError, r"pixel_mean: expected three numbers, found \[\]"),
        (dict(pixel_mean=["a", 2, 3]), ValueError, r"pixel_mean: expected a number .* found 'a'"),
        (dict(pixel_std=[0, 0, 0]), ValueError, r"pixel_std: expected a number > 0, found 0"),
        (dict(pixel_std=[-1, 1, 1]), ValueError, r"pixel_std: expected a number > 0, found -1"),
        (
            dict(backbone="torchvision/vit_b_32"),
            ValueError,
            r"expected a network for images of any",
        ),
    ],
)
def test_bad_input_is_an_error_that_names_it(fields, error, message):
    with pytest.raises(error, match=message):
        FeatureTeacher(**{"backbone": VIT, "weights": None, **fields})


def test_backbones_are_detectron2s():
    backbone = PatchBackbone(VIT)
    assert backbone.output_shape()["patches"].channels == 24
    assert backbone(torch.zeros(1, 3, 32, 48))["patches"].shape == (1, 24, 2, 3)


def test_torchvision_is_a_teacher_too():
    teacher, (x,) = FeatureTeacher("torchvision/resnet18", None), toys.batch(1)
    assert isinstance(teacher.model.body, LibraryBackbone)
    network = get_model("resnet18").eval()
    network.load_state_dict(teacher.model.body.body.state_dict(), strict=False)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    with torch.no_grad():
        y = network.conv1(normalized(x["image"], mean, std)[None])
        y = network.maxpool(network.relu(network.bn1(y)))
        for layer in (network.layer1, network.layer2, network.layer3):
            y = layer(y)
    torch.testing.assert_close(show(teacher, [x])["res4"], y)
