"""`d2kd visualize`: what it draws for which config."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling.meta_arch import RetinaNet

from d2kd import visualize as drawing
from d2kd.checkpoint import Checkpointer
from d2kd.data.manifest import Image
from d2kd.matching import GroundTruth
from d2kd.pseudo.coco import write_labels
from d2kd.pseudo.fuse import Labels
from d2kd.tools import visualize
from d2kd.visualize import draw
from tests import toys

ROOT = Path(__file__).parents[2]

CONFIG = f"""
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L, LazyConfig
from d2kd import Distiller, Teacher
from d2kd.methods import FGD, PFI, PGD, MCDropout, Methods, RankMimic
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
    others = "pgd=L(PGD)(), pfi=L(PFI)(), rank=L(RankMimic)()"
    Path("others.py").write_text(CONFIG.replace("fgd=L(FGD)()", others))
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


TEACHER = ["Teacher", "Attention: teacher", "Key regions"]
STUDENT = ["Student", "Teacher", "Attention: teacher", "Attention: student", "Key regions"]
BOTH = [
    *("Student alone", "Distilled", "Teacher"),
    *("Attention: teacher", "Attention: student alone", "Attention: distilled", "Key regions"),
]
PGD = ["PGD: classification", "PGD: boxes"]
RM = ["RM: candidates", "RM: ranks"]
DETECTOR = ["Detector", "Attention: detector", "Key regions"]
WEIGHTS = ["--weights", "student.pth"]


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ("config.py", [], TEACHER),
        ("uet.py", [], [*TEACHER, "UET: mean", "UET: uncertainty"]),
        ("config.py", WEIGHTS, STUDENT),
        ("config.py", [*WEIGHTS, "--images", "images"], STUDENT[:-1]),
        ("config.py", [*WEIGHTS, "--alone", "student.pth"], BOTH),
        # Of the methods, only PGD looks at the teacher alone.
        ("others.py", [], [*TEACHER[:-1], *PGD]),
        ("others.py", WEIGHTS, [*STUDENT[:-1], *PGD, "PFI: student", *RM]),
        ("others.py", [*WEIGHTS, "--images", "images"], [*STUDENT[:-1], "PFI: student"]),
        ("detector.py", [*WEIGHTS, "--dataset", "toy_draw"], DETECTOR),
        ("detector.py", ["train.init_checkpoint=student.pth"], DETECTOR),
    ],
)
def test_columns(folder, sheet, config, more, expected):
    assert visualize.main([config, *more, "--count", "2", "--output", "o"]) == 0
    assert titles(sheet) == expected
    columns, text = sheet[-1]
    assert {len(column.drawings) for column in columns} == {2}
    assert ("no ground truth" in text["caption"]) == ("--images" in more)
    assert "level p3" in text["caption"]
    assert text["legend"] == ("--images" not in more)


def test_a_student_of_the_model_zoo_by_its_name(folder, sheet, published, monkeypatch):
    names = []
    monkeypatch.setattr(draw, "draw_detections", lambda *args: names.append(args[-1]))
    assert visualize.main(["toy_tiny", "--images", "images", "--count", "2", "--output", "o"]) == 0
    assert titles(sheet) == ["Detector", "Attention: detector"]
    columns, _ = sheet[-1]
    columns[0].drawings[0](None)
    assert names == [("cat", "dog", "cow")]


def test_the_sheet_is_drawn(folder):
    argv = ["config.py", "--weights", "student.pth", "--count", "1", "--level", "p4"]
    assert visualize.main([*argv, "--threshold", "0.4", "--output", "a/b"]) == 0
    assert cv2.imread("a/b/visualize.png").shape[1] == 1800


def test_each_network_sees_its_own_channel_order(folder, sheet, monkeypatch):
    seen = {}
    preprocess = RetinaNet.preprocess_image

    def record(self, inputs):
        seen[self.backbone.bottom_up.stem.out_channels] = inputs[0]["image"]
        return preprocess(self, inputs)

    monkeypatch.setattr(RetinaNet, "preprocess_image", record)
    argv = ["config.py", "--weights", "student.pth", "--count", "1", "--output", "o"]
    visualize.main(argv)
    bgr = cv2.resize(cv2.imread("images/0.png"), (96, 96))
    assert seen[4].shape == seen[8].shape == (3, 96, 96)
    # The student gets the RGB images of the mapper, the teacher what it was trained on: BGR.
    for width, pixels in ((4, bgr[..., ::-1]), (8, bgr)):
        difference = seen[width].permute(1, 2, 0).numpy().astype(int) - pixels
        assert np.abs(difference).mean() < 3  # another interpolation


def test_key_regions_are_those_of_the_resized_boxes(folder, sheet, monkeypatch):
    drawn = []
    monkeypatch.setattr(draw, "draw_heat", lambda ax, image, heat, **s: drawn.append(heat))
    visualize.main(["config.py", "--count", "1", "--output", "o"])
    columns, _ = sheet[-1]
    columns[2].drawings[0](None)
    (x, y, width, height) = DatasetCatalog.get("toy_draw")[0]["annotations"][0]["bbox"]
    boxes = np.array([[x, y, x + width, y + height]]) * 1.5
    image = toys.image(size=(96, 96))
    expected = drawing.key_regions(toys.retinanet(), image, GroundTruth(boxes, np.zeros(1)))
    np.testing.assert_allclose(drawn[0], np.sqrt(expected))


def test_a_threshold_that_is_too_high_is_told(folder, sheet, capsys):
    argv = ["detector.py", *WEIGHTS, "--count", "2", "--output", "o", "--threshold"]
    visualize.main([*argv, "1"])
    hint = re.search(r"2 of 2 images .* try --threshold (\S+)\.$", capsys.readouterr().out)
    visualize.main([*argv, hint[1]])
    assert "--threshold" not in capsys.readouterr().out


def test_an_image_that_cannot_be_read_is_named_and_left_out(folder, sheet, capsys):
    argv = ["detector.py", *WEIGHTS, "--images", "images/0.png", "config.py", "images/1.png"]
    assert visualize.main([*argv, "--output", "o"]) == 1
    assert {len(column.drawings) for column in sheet[-1][0]} == {2}
    error = capsys.readouterr().err
    assert "1 of 3 images are left out" in error and "can be read at 'config.py', found" in error


def write_pseudo_labels(path: str) -> None:
    """Labels of image 0: a box of class 1, a region to ignore, and a box that was left out."""
    labels = Labels(
        boxes=np.array([[4.0, 4, 20, 24], [30, 30, 50, 60]]),
        classes=np.array([1, 0]),
        scores=np.array([0.9, 0.4]),
        votes=np.ones(2, dtype=int),
        teachers=np.ones((2, 1), dtype=bool),
        ignore=np.array([False, True]),
        weights=np.ones(2),
    )
    image = Image(0, str(Path("images/0.png").absolute()), 64, 64)
    provenance = dict(teachers={"t": {}}, settings={}, manifest={})
    write_labels(path, [image], {0: labels}, ["a", "b", "c"], provenance)


def test_pseudo_labels_stand_for_the_objects_as_in_training(folder, sheet, monkeypatch):
    write_pseudo_labels("made/labels.json")
    drawn = []
    monkeypatch.setattr(draw, "draw_labels", lambda ax, image, labels, names: drawn.append(labels))
    argv = ["others.py", *WEIGHTS, "--labels", "made/labels.json", "--output", "o"]
    assert visualize.main(argv) == 0
    assert titles(sheet) == ["Pseudo labels", *STUDENT[:-1], *PGD, "PFI: student", *RM]
    columns, text = sheet[-1]
    assert not text["legend"]  # there is no truth to compare detections with
    columns[0].drawings[0](None)
    (labels,) = drawn
    assert labels.boxes.boxes.tolist() == [[4, 4, 20, 24]]
    assert labels.boxes.classes.tolist() == [1] and labels.boxes.scores.tolist() == [0.9]
    assert labels.ignored.tolist() == [[30, 30, 50, 60]]
    assert "hatched regions are ignored" in text["caption"] and "no ground" in text["caption"]


def test_pseudo_labels_need_no_detector(folder, sheet):
    write_pseudo_labels("made/labels.json")
    argv = ["detector.py", "--labels", "made/labels.json", "--output", "o"]
    assert visualize.main(argv) == 0
    assert titles(sheet) == ["Pseudo labels"]


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["detector.py"], ValueError, "--weights: expected a checkpoint"),
        (["config.py", "--dataset", "toy_drew"], ValueError, "'toy_drew'. Did you mean toy_draw"),
        (["config.py", "--images", "config.py"], ValueError, "can be read at 'config.py', found"),
        (["config.py", "--images", "gone.png", "train.devce=cpu"], ValueError, "mean device"),
        (["config.py", "--images", "gone.png"], FileNotFoundError, "found no 'gone.png'"),
        (["config.py", "--labels", "gone.json"], FileNotFoundError, "gone.json: expected labels"),
        (["config.py", "--level", "p9"], ValueError, "level: expected a level of RetinaNet"),
        (["config.py", "--images", "empty"], ValueError, "expected images, found none"),
        (["config.py", "--weights", "teacher.pth"], ValueError, "expected all tensors to match"),
        (["config.py", "train.device=cuda"], ValueError, "but no GPU"),
        (
            ["config.py", *WEIGHTS, "--alone", "teacher.pth"],
            ValueError,
            "--alone: expected a checkpoint of the config's student, .* found: teacher.pth does",
        ),
        (["config.py", "--threshold", "7"], ValueError, "--threshold: expected a number >= 0 and"),
    ],
)
def test_mistakes_are_named(folder, argv, error, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        visualize.main([*argv, "--output", "o"])
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alone", "student.pth"], "--alone: expected --weights of the distilled student"),
        (["--count", "0"], "--count: expected at least 1, found 0"),
    ],
)
def test_options_out_of_their_range_are_named(options, message, capsys):
    with pytest.raises(SystemExit):
        visualize.main(["config.py", *options, "--output", "o"])
    assert message in capsys.readouterr().err


def test_a_threshold_that_is_no_score_is_refused():
    with pytest.raises(ValueError, match="--threshold: expected a number >= 0 and <= 1, found 7"):
        visualize.main(["config.py", "--threshold", "7", "--output", "o"])
