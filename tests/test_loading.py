import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.anchor_generator import RotatedAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformRotated
from torch import nn

from d2kd import Distiller, Teacher
from d2kd.backbones import LibraryBackbone
from d2kd.loading import build_detector, fuse_norms
from d2kd.pseudo.teachers import LabelTeacher
from tests import project, toys


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


SETUP = "tests.project.add_project_config"


def test_the_yacs_config_of_a_project_builds_with_its_setup(tmp_path):
    path = project.write_config(tmp_path / "project.yaml")
    for setup in (SETUP, project.add_project_config):
        built = build_detector(path, setup=setup)
        assert type(built.model) is project.ProjectNet and built.model.gain == 2.5
        assert built.test_size == (64, 96)


@pytest.mark.parametrize(
    "kind",
    [
        lambda path, **fields: Teacher(path, None, **fields).model,
        lambda path, **fields: LabelTeacher(path, None, ["a", "b", "c"], **fields).model,
        lambda path, **fields: Distiller(student=path, **fields).student,
    ],
)
def test_every_place_of_a_yacs_config_takes_a_setup(tmp_path, kind):
    path = project.write_config(tmp_path / "project.yaml")
    assert type(kind(path, setup=SETUP)) is project.ProjectNet
    with pytest.raises(ValueError, match=r"project\.yaml: .*MODEL\.PROJECT.*give .*setup="):
        kind(path)


def test_a_module_that_only_a_project_registers_is_an_error_that_names_setup(tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("MODEL: {META_ARCHITECTURE: NetOfAProject}\nVERSION: 2\n")
    with pytest.raises(ValueError, match=r"other\.yaml: .*NetOfAProject.*setup="):
        build_detector(str(path))


@pytest.mark.parametrize(
    "setup, message",
    [
        ("no_such_project.add", r"setup: expected the dotted name .*'no_such_project\.add'"),
        ("tests.project.no_such", r"setup: expected the dotted name .*'tests\.project\.no_such'"),
        (3, r"setup: expected a function .* found 3"),
    ],
)
def test_a_setup_that_is_not_there_is_named(tmp_path, setup, message):
    path = project.write_config(tmp_path / "project.yaml")
    with pytest.raises(ValueError, match=message):
        build_detector(path, setup=setup)


@pytest.mark.parametrize("source", ["configs/demo/student.py", toys.retinanet()])
def test_a_setup_without_a_yacs_config_is_refused(source):
    with pytest.raises(ValueError, match="setup: expected the path of a yacs"):
        build_detector(source, setup=SETUP)


def rotated_rpn():
    model = toys.rcnn()
    model.proposal_generator.anchor_generator = RotatedAnchorGenerator(
        sizes=[[32]] * 5, aspect_ratios=[[1.0]], strides=[4, 8, 16, 32, 64], angles=[[0]]
    )
    return model


def rotated_head():
    model = toys.rcnn()
    model.roi_heads.box_predictor.box2box_transform = Box2BoxTransformRotated((10, 10, 5, 5, 1))
    return model


@pytest.mark.parametrize(
    "model, place",
    [
        (rotated_rpn, r"proposal_generator\.anchor_generator"),
        (rotated_head, r"roi_heads\.box_predictor"),
    ],
)
def test_detectors_of_rotated_boxes_are_refused(model, place):
    message = rf"{{}} GeneralizedRCNN: expected a detector of upright boxes .* {place}"
    with pytest.raises(ValueError, match=message.format("Teacher")):
        Teacher(model(), None)
    with pytest.raises(ValueError, match=message.format("LabelTeacher")):
        LabelTeacher(model(), None, ["a", "b", "c"])
    with pytest.raises(ValueError, match=message.format("student")):
        Distiller(student=model())
