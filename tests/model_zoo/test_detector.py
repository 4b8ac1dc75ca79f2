"""`Detector` gives what Detectron2 gives for the same picture, and needs nothing but its files."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from d2kd.checkpoint import Checkpointer
from d2kd.model_zoo import Detector
from tests import project, toys
from tests.model_zoo.conftest import CONFIG


@pytest.fixture
def picture(tmp_path):
    """A color picture of 50 x 80 pixels: its path, and its pixels as OpenCV reads them."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), pixels)
    return path, pixels


@pytest.fixture
def toy(zoo):
    return Detector(zoo / "toy/student.py", zoo / "toy/student.pth", device="cpu")


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    assert found.image_size == expected.image_size
    for field in ("scores", "pred_classes"):
        assert torch.equal(found.get(field), expected.get(field))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_it_finds_what_detectron2_finds_with_mapper_and_checkpointer(zoo, toy, picture):
    path, _ = picture
    cfg = LazyConfig.load(str(zoo / "toy/student.py"))
    model = instantiate(cfg.model).eval()
    DetectionCheckpointer(model).load(str(zoo / "toy/student.pth"))
    record = dict(file_name=str(path), height=50, width=80)
    inputs = instantiate(cfg.dataloader.test.mapper)(record)
    assert inputs["image"].shape == (3, 80, 128)  # the longer side is limited to 128 pixels
    with torch.no_grad():
        (expected,) = model([inputs])
    found = toy(path)
    assert_same(found, expected["instances"])
    assert found.image_size == (50, 80) and found.pred_boxes.tensor[:, 2].max() <= 80
    assert not found.scores.requires_grad


def test_arrays_are_bgr_unless_they_say_rgb(toy, picture):
    path, bgr = picture
    expected = toy(str(path))
    assert_same(toy(bgr), expected)
    assert_same(toy(bgr[..., ::-1], image_format="RGB"), expected)
    wrong = toy(bgr, image_format="RGB")
    assert len(wrong) != len(expected) or not torch.equal(wrong.scores, expected.scores)


def test_a_bgr_config_gets_bgr_pixels(zoo, picture):
    path, bgr = picture
    text = CONFIG.replace('"RGB"', '"BGR"').replace("short_edge_length=96", "short_edge_length=50")
    (zoo / "toy/bgr.py").write_text(text)
    made = Detector("toy/bgr.py", zoo / "toy/student.pth", device="cpu").make_input(path)
    assert np.array_equal(made["image"].permute(1, 2, 0).numpy(), bgr)
    assert (made["height"], made["width"]) == (50, 80)


def test_files_are_turned_as_their_exif_says(toy, tmp_path):
    from PIL import Image

    image = Image.new("RGB", (80, 50))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    made = toy.make_input(tmp_path / "turned.jpg")
    assert (made["height"], made["width"]) == (80, 50)


@pytest.mark.parametrize(
    ("image", "more", "message"),
    [
        (np.zeros((50, 80), np.uint8), {}, r"found an array \(50, 80\) of uint8"),
        (np.zeros((50, 80, 3), np.float32), {}, r"of uint8, found .* of float32"),
        (np.zeros((50, 80, 3), np.uint8), {"image_format": "L"}, "'BGR' or 'RGB', found 'L'"),
    ],
)
def test_other_arrays_are_errors(toy, image, more, message):
    with pytest.raises(ValueError, match=message):
        toy(image, **more)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        toy("gone.png")


BACKBONE = """
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7

model.backbone = L(FPN)(
    bottom_up=L(LibraryBackbone)(name="{name}", pretrained="gone.safetensors"),
    in_features=["res3", "res4", "res5"],
    out_channels=8,
    top_block=L(LastLevelP6P7)(in_channels={width}, out_channels=8),
)
"""


def test_imagenet_weights_need_not_exist(zoo, picture):
    text = CONFIG + BACKBONE.format(name="torchvision/resnet18", width=512)
    (zoo / "toy/library.py").write_text(text)
    cfg = LazyConfig.load(str(zoo / "toy/library.py"))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        instantiate(cfg.model)
    cfg.model.backbone.bottom_up.pretrained = False
    Checkpointer(instantiate(cfg.model), str(zoo / "toy")).save("library")
    detector = Detector("toy/library.py", zoo / "toy/library.pth", device="cpu")
    weights = torch.load(zoo / "toy/library.pth", weights_only=True)["model"]
    key = "backbone.bottom_up.body.conv1.weight"
    assert torch.equal(detector.model.state_dict()[key], weights[key])
    detector(picture[0])


def test_missing_timm_is_named(zoo, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    text = CONFIG + BACKBONE.format(name="timm/mobilenetv2_100", width=320)
    (zoo / "toy/library.py").write_text(text)
    with pytest.raises(ImportError, match=r"expected the package timm, found none. Run `pip"):
        Detector("toy/library.py", zoo / "toy/student.pth", device="cpu")


DISTILLED = """
from d2kd import Distiller, Teacher
from d2kd.methods import Methods, Mimic

model = L(Distiller)(
    student=model,
    teacher=L(Teacher)(model=L(toys.retinanet)(width=8), weights="gone.pth"),
    methods=L(Methods)(mimic=L(Mimic)()),
)
"""


def test_a_distillers_config_and_checkpoint_give_the_student(zoo, toy, trained, picture):
    (zoo / "toy/distill.py").write_text(CONFIG + DISTILLED)
    extra = {"distillation.mimic.adapters.p3.weight": torch.zeros(8, 8, 1, 1)}
    torch.save({"model": {**trained.state_dict(), **extra}}, zoo / "toy/distilled.pth")
    student = Detector("toy/distill.py", zoo / "toy/distilled.pth", device="cpu")
    assert type(student.model).__name__ == "RetinaNet" and not student.model.training
    assert_same(student(picture[0]), toy(picture[0]))


def test_the_students_config_may_be_another_file(zoo, toy, picture):
    named = DISTILLED.replace("student=model", f"student={str(zoo / 'toy/student.py')!r}")
    (zoo / "toy/distill.py").write_text(CONFIG + named)
    student = Detector("toy/distill.py", zoo / "toy/student.pth", device="cpu")
    assert_same(student(picture[0]), toy(picture[0]))


def test_building_it_leaves_random_numbers_alone(zoo):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Detector("toy/student.py", zoo / "toy/student.pth", device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_a_yacs_config_detects_as_detectron2s_predictor(zoo, tmp_path):
    config = get_cfg()
    path = project.write_config(tmp_path / "yacs.yaml", "RetinaNet")
    text = Path(path).read_text().replace("  PROJECT: {GAIN: 2.5}\n", "")
    Path(path).write_text(text.replace("NUM_CLASSES: 3", "NUM_CLASSES: 3, PRIOR_PROB: 0.3"))
    config.merge_from_file(path)
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", str(tmp_path / "model.pth")
    Checkpointer(build_model(config), str(tmp_path)).save("model")
    expected = DefaultPredictor(config)
    detector = Detector(path, config.MODEL.WEIGHTS, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    found, wanted = detector(pixels), expected(pixels)["instances"]
    assert_same(found, wanted)
    # The same as the student of a distiller that names the file.
    distiller = tmp_path / "distiller.py"
    distiller.write_text(
        "from detectron2.config import LazyCall as L\n"
        "from d2kd import Distiller, load_student_config\n"
        f"model = L(Distiller)(student={path!r})\n"
        f"dataloader = load_student_config({path!r}).dataloader\n"
    )
    assert_same(Detector(distiller, config.MODEL.WEIGHTS, device="cpu")(pixels), wanted)


def test_mistakes_are_named(zoo, tmp_path):
    weights = zoo / "toy/student.pth"
    with pytest.raises(FileNotFoundError, match=r"found 'toy/studnet\.py'\. Did you mean toy/stud"):
        Detector("toy/studnet.py", weights)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        Detector("toy/student.py", "gone.pth")
    (zoo / "toy/bare.py").write_text("model = dict()")
    with pytest.raises(ValueError, match=r"dataloader\.test\.mapper\.augmentations.*found"):
        Detector(zoo / "toy/bare.py", weights)
    other = toys.retinanet(num_classes=7)
    Checkpointer(other, str(tmp_path)).save("other")
    with pytest.raises(ValueError, match="expected all tensors to match"):
        Detector("toy/student.py", tmp_path / "other.pth")
