import copy

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg
from detectron2.layers import FrozenBatchNorm2d

from d2kd import Teacher
from tests import toys

AS_IT_IS = dict(input_format="BGR", padded_size=(64, 64))


def with_statistics(model):
    """Give the batch norms of a model, frozen or not, random weights and statistics."""
    for norm in model.modules():
        if isinstance(norm, (FrozenBatchNorm2d, torch.nn.BatchNorm2d)):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, name).data.uniform_(0.5, 1.5)


def test_features_equal_the_detectors():
    model = toys.retinanet().eval()
    inputs = toys.batch()
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image(inputs).tensor)
    seen = Teacher(model, None)(inputs, **AS_IT_IS)
    assert all(torch.equal(seen.features[k], expected[k]) for k in expected)
    assert not seen.logits and not seen.features["p3"].requires_grad


def test_it_is_frozen_and_in_evaluation_mode():
    teacher = Teacher(toys.retinanet().train(), None)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(m.training for m in teacher.model.modules())


def test_images_in_the_other_channel_order_are_converted():
    model = toys.retinanet(input_format="RGB")
    inputs = toys.batch()
    turned = [{**x, "image": x["image"].flip(0)} for x in inputs]
    teacher = Teacher(model, None)
    from_bgr = teacher(inputs, **AS_IT_IS)
    from_rgb = teacher(turned, input_format="RGB", padded_size=(64, 64))
    assert torch.equal(from_bgr.features["p3"], from_rgb.features["p3"])
    untouched = Teacher(model, None, input_format="BGR")(inputs, **AS_IT_IS)
    assert not torch.equal(untouched.features["p3"], from_bgr.features["p3"])


def test_it_normalizes_with_its_own_statistics():
    model = toys.retinanet(pixel_mean=[1.0, 2.0, 3.0], pixel_std=[4.0, 5.0, 6.0]).eval()
    inputs = [toys.image()]
    pixels = (inputs[0]["image"] - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor(
        [4.0, 5, 6]
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = model.backbone(pixels[None])["p3"]
    torch.testing.assert_close(Teacher(model, None)(inputs, **AS_IT_IS).features["p3"], expected)


@pytest.mark.parametrize("size, padded", [((64, 64), (64, 64)), ((65, 130), (96, 160))])
def test_it_pads_the_students_size_to_its_own_multiples(size, padded):
    # The neck of the toy detector needs multiples of 32.
    teacher = Teacher(toys.retinanet(), None)
    seen = []
    teacher.model.backbone.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape))
    shown = teacher(toys.batch(size=(40, 50)), input_format="BGR", padded_size=size)
    assert seen == [(2, 3, *padded)]
    # Parts of the maps outside the student's frame are cut off.
    assert shown.padded_size == size
    assert shown.features["p3"].shape[-2:] == tuple(-(-side // 8) for side in size)


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_it_has_its_own_precision(dtype):
    teacher = Teacher(toys.retinanet(), None, dtype=dtype)
    shown = teacher(toys.batch(), **AS_IT_IS).features["p3"]
    assert shown.dtype == torch.float32
    assert torch.equal(shown, shown.bfloat16().float()) == (dtype == "bfloat16")


@pytest.mark.parametrize(
    "needs", [["features"], ["features", "cls_tower.1", "box_tower.1", "logits", "boxes"]]
)
def test_a_fast_teacher_gives_the_same_output(needs):
    model = toys.retinanet(norm="BN")
    model.backbone.fpn_lateral3.norm = torch.nn.BatchNorm2d(8)
    with_statistics(model)
    slow = Teacher(copy.deepcopy(model), None)(toys.batch(), **AS_IT_IS, needs=needs)
    fast = Teacher(model, None, fast=True)(toys.batch(), **AS_IT_IS, needs=needs)
    assert model.backbone.bottom_up.stem.conv1.norm is None
    assert model.backbone.fpn_lateral3.norm is not None  # a student may inherit the neck
    for name in ("features", "cls_tower.1", "box_tower.1", "logits", "deltas"):
        for level, x in slow.maps(name).items():
            other = fast.maps(name)[level]
            assert other.is_contiguous()
            assert torch.allclose(other, x, rtol=0, atol=1e-5 * x.abs().max())


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_same_output():
    model = toys.retinanet(norm="BN")
    with_statistics(model)
    plain = Teacher(copy.deepcopy(model), None)
    compiled = Teacher(model, None, compile=True)
    names = ("features", "cls_tower.1", "logits", "deltas")
    for size in ((64, 64), (64, 96), (96, 64)):
        given = dict(input_format="BGR", padded_size=size)
        batch = toys.batch(size=size)
        expected = plain(batch, **given, needs=names[:3])
        found = compiled(batch, **given, needs=names[:3])
        for name in names:
            for level, x in expected.maps(name).items():
                other = found.maps(name)[level]
                assert torch.allclose(other, x, rtol=0, atol=1e-5 * x.abs().max())
    assert list(model.state_dict()) == list(plain.model.state_dict())


def test_building_it_keeps_the_random_state():
    state = torch.get_rng_state()
    Teacher("configs/demo/student.py", None)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_builds_from_a_zoo_name_and_a_yaml_file(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.INPUT.FORMAT = "RGB"
    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    teacher = Teacher(str(tmp_path / "teacher.yaml"), None)
    assert teacher.reader.name == "RetinaNet" and teacher.input_format == "RGB"
    zoo = Teacher("COCO-Detection/retinanet_R_50_FPN_1x.yaml", None)
    assert zoo.reader.num_classes == 80 and zoo.input_format == "BGR"


def test_channel_order_follows_the_images_that_its_config_loads(tmp_path):
    # Detectron2's FCOS has no field for the channel order.
    (tmp_path / "teacher.py").write_text(
        "from detectron2.config import LazyCall as L\n"
        "from tests import toys\n"
        "model = L(toys.fcos)()\n"
        "dataloader = dict(train=dict(mapper=dict(image_format='RGB')))\n"
    )
    assert Teacher(str(tmp_path / "teacher.py"), None).input_format == "RGB"
    assert Teacher(str(tmp_path / "teacher.py"), None, input_format="BGR").input_format == "BGR"


def test_it_builds_from_the_config_that_a_run_saved(tmp_path):
    LazyConfig.save(LazyConfig.load("configs/demo/student.py"), str(tmp_path / "config.yaml"))
    assert Teacher(str(tmp_path / "config.yaml"), None).input_format == "RGB"


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Teacher("no/such.yaml", None), FileNotFoundError, r"found 'no/such.yaml'"),
        (lambda: Teacher(toys.fcos(), "zoo"), FileNotFoundError, r"weights='zoo'.* found 'FCOS'"),
        (lambda: Teacher(toys.fcos(), None, dtype="int8"), ValueError, r"Teacher.dtype.*'int8'"),
        (lambda: Teacher(toys.fcos(), None, input_format="YUV"), ValueError, r"FCOS.*'YUV'"),
        (lambda: Teacher(toys.fcos(), "gone.pth"), FileNotFoundError, r"'gone.pth', found no file"),
    ],
)
def test_bad_input_is_an_error_that_names_it(make, error, message):
    with pytest.raises(error, match=message):
        make()
