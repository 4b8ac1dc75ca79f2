"""`d2kd visualize`: what it draws for which config."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from d2kd import visualize as drawing
from d2kd.checkpoint import Checkpointer
from d2kd.matching import GroundTruth
from d2kd.methods import MCDropout
from d2kd.tools import visualize
from tests import toys

ROOT = Path(__file__).parents[2]

CONFIG = f"""
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L, LazyConfig
from d2kd import Distiller, Teacher
from d2kd.methods import FGD, MCDropout, Methods
from tests import toys

demo = LazyConfig.load({str(ROOT / "configs/demo/student.py")!r})
dataloader, train = demo.dataloader, demo.train
model = L(Distiller)(
    student=L(toys.retinanet)(input_format="RGB"),
    teacher=L(Teacher)(model=L(toys.retinanet)(width=8), weights="teacher.pth"),
    methods=L(Methods)(fgd=L(FGD)()),
)
train.device = "cpu"
dataloader.train.dataset.names = dataloader.test.dataset.names = "toy_draw"
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=96)]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    files = toys.coco_dataset(tmp_path / "images", classes=3)
    register_coco_instances("toy_draw", {}, *map(str, files))
    monkeypatch.chdir(tmp_path)
    for name, width in (("student", 4), ("teacher", 8)):
        detector = toys.retinanet(width)
        torch.nn.init.zeros_(detector.head.cls_score.bias)  # so that there are detections
        Checkpointer(detector, ".").save(name)
    Path("config.py").write_text(CONFIG)
    Path("uet.py").write_text(CONFIG.replace("(FGD)()", "(FGD)(uncertainty=L(MCDropout)())"))
    Path("detector.py").write_text(CONFIG + "model = model.student\n")
    yield tmp_path
    DatasetCatalog.remove("toy_draw")
    MetadataCatalog.remove("toy_draw")


@pytest.fixture
def sheet(monkeypatch):
    """Columns of the last sheet; nothing is drawn."""
    sheets = []
    monkeypatch.setattr(
        visualize, "compose_sheet", lambda path, columns, **text: sheets.append((columns, text))
    )
    return sheets


def titles(sheet) -> list[str]:
    columns, _ = sheet[-1]
    return [column.title for column in columns]


TEACHER = ["Teacher", "Teacher's attention", "Key regions"]
STUDENT = ["Student", "Teacher", "Teacher's attention", "Student's attention", "Key regions"]


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ("config.py", [], TEACHER),
        ("uet.py", [], [*TEACHER, "UET: mean", "UET: uncertainty"]),
        ("config.py", ["--weights", "student.pth"], STUDENT),
        ("config.py", ["--weights", "student.pth", "--images", "images"], STUDENT[:-1]),
        (
            "detector.py",
            ["--weights", "student.pth", "--dataset", "toy_draw"],
            ["Detector", "Detector's attention", "Key regions"],
        ),
        (
            "detector.py",
            ["train.init_checkpoint=student.pth"],
            ["Detector", "Detector's attention", "Key regions"],
        ),
    ],
)
def test_columns(folder, sheet, config, more, expected):
    assert visualize.main([config, *more, "--count", "2", "--output", "o"]) == 0
    assert titles(sheet) == expected
    columns, text = sheet[-1]
    assert {len(column.drawings) for column in columns} == {2}
    assert ("no ground truth" in text["caption"]) == ("--images" in more)
    assert "level p3" in text["caption"]


def test_a_student_of_the_model_zoo_by_its_name(folder, sheet, published, monkeypatch):
    names = []
    monkeypatch.setattr(visualize, "draw_detections", lambda *args: names.append(args[-1]))
    assert visualize.main(["toy_tiny", "--images", "images", "--count", "2", "--output", "o"]) == 0
    assert titles(sheet) == ["Detector", "Detector's attention"]
    columns, _ = sheet[-1]
    columns[0].drawings[0](None)
    assert names == [("cat", "dog", "cow")]


def test_the_sheet_is_drawn(folder):
    argv = ["config.py", "--weights", "student.pth", "--count", "1", "--level", "p4"]
    assert visualize.main([*argv, "--threshold", "0.4", "--output", "a/b"]) == 0
    assert Image.open("a/b/visualize.png").width == 1800


def test_each_network_sees_its_own_channel_order(folder, sheet, monkeypatch):
    seen = {}

    def attention(model, inputs, *, level):
        seen[model.backbone.bottom_up.stem.out_channels] = inputs["image"]
        return np.zeros(inputs["image"].shape[-2:])

    monkeypatch.setattr(visualize, "spatial_attention", attention)
    argv = ["config.py", "--weights", "student.pth", "--count", "1", "--output", "o"]
    visualize.main(argv)
    bgr = cv2.resize(cv2.imread("images/0.png"), (96, 96))
    assert seen[4].shape == seen[8].shape == (3, 96, 96)
    # The student gets the RGB images of the mapper, the teacher what it was trained on: BGR.
    for width, pixels in ((4, bgr[..., ::-1]), (8, bgr)):
        difference = seen[width].permute(1, 2, 0).numpy().astype(int) - pixels
        assert np.abs(difference).mean() < 3  # another interpolation


def test_true_boxes_follow_the_resized_image():
    truth = GroundTruth(np.ones((1, 4)), np.zeros(1))
    picture = visualize.Picture(np.zeros((50, 100, 3)), {}, np.zeros((100, 300, 3)), truth)
    np.testing.assert_array_equal(picture.resized_truth.boxes, [[3, 2, 3, 2]])
    assert picture._replace(truth=None).resized_truth is None


def test_key_regions_are_those_of_the_resized_boxes(folder, sheet, monkeypatch):
    drawn = []
    monkeypatch.setattr(visualize, "draw_heat", lambda ax, image, heat, **s: drawn.append(heat))
    visualize.main(["config.py", "--count", "1", "--output", "o"])
    columns, _ = sheet[-1]
    columns[2].drawings[0](None)
    (x, y, width, height) = DatasetCatalog.get("toy_draw")[0]["annotations"][0]["bbox"]
    boxes = np.array([[x, y, x + width, y + height]]) * 1.5
    image = toys.image(size=(96, 96))
    expected = drawing.key_regions(toys.retinanet(), image, GroundTruth(boxes, np.zeros(1)))
    np.testing.assert_allclose(drawn[0], np.sqrt(expected))


def test_uncertainty_is_the_configs(folder):
    from d2kd.config import load_config

    assert visualize.find_dropout(load_config("config.py")) is None
    cfg = load_config("uet.py", ["model.methods.fgd.uncertainty.rates=[0.25]"])
    found = visualize.find_dropout(cfg)
    assert isinstance(found, MCDropout) and list(found.rates) == [0.25]
    assert visualize.find_dropout(load_config("detector.py")) is None


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["detector.py"], ValueError, "--weights: expected a checkpoint"),
        (["config.py", "--dataset", "toy_drew"], ValueError, "'toy_drew'. Did you mean toy_draw"),
        (["config.py", "--images", "config.py"], ValueError, "can be read at 'config.py', found"),
        (["config.py", "--images", "gone.png", "train.devce=cpu"], ValueError, "mean device"),
        (["config.py", "--images", "gone.png"], FileNotFoundError, "found none at 'gone.png'"),
        (["config.py", "--images", "empty"], ValueError, "expected images, found none"),
        (["config.py", "--weights", "teacher.pth"], ValueError, "expected all tensors to match"),
        (["config.py", "train.device=cuda"], ValueError, "but no GPU"),
        (["config.py", "--threshold", "7"], ValueError, "--threshold: expected a number >= 0 and"),
    ],
)
def test_mistakes_are_named(folder, argv, error, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        visualize.main([*argv, "--output", "o"])
    assert not Path("o").exists()


def test_count_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        visualize.main(["config.py", "--count", "0", "--output", "o"])
    assert "--count: expected at least 1, found 0" in capsys.readouterr().err
