"""`d2kd export`: the folder that it writes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.layers import ShapeSpec

from d2kd.export import OnnxDetector, run
from d2kd.export.card import metrics_of_run
from d2kd.model_zoo import Detector
from d2kd.tools import export
from tests import toys
from tests.export.conftest import onnx
from tests.model_zoo.test_detector import DISTILLED

__all__ = ["onnx"]  # a fixture

EVALUATION = """
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator

test = dataloader["test"]
dataloader["test"] = L(build_detection_test_loader)(num_workers=0, **test)
dataloader["evaluator"] = L(COCOEvaluator)(dataset_name="never_registered", max_dets_per_image=100)
"""

PLAIN = ["--formats", "detectron2", "safetensors"]


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), pixels)
    return tmp_path / "picture.png"


@pytest.fixture
def arguments(zoo, picture, tmp_path):
    argv = ["toy/student.py", "--weights", str(zoo / "toy/student.pth")]
    return [*argv, "--images", str(picture), "--output", str(tmp_path / "out")]


def test_all_files_with_their_checks(arguments, onnx, trained, picture, tmp_path, capsys):
    assert export.main([*arguments, "--classes", "cat", "dog", "cow", "--ap", "31.25"]) == 0
    folder = tmp_path / "out"
    names = {"config.yaml", "model.pth", "model.safetensors", "model.ts", "model.onnx"}
    assert {x.name for x in folder.iterdir()} == names | {"README.md", "model_card.json"}
    card = json.loads((folder / "model_card.json").read_text())
    assert card["files"].keys() == names
    for name in names:
        content = (folder / name).read_bytes()
        assert card["files"][name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert card["files"][name]["bytes"] == len(content)
    for name in ("model.ts", "model.onnx"):
        check = card["files"][name]["check"]
        assert check["images"] == 4 and check["detections"] > 3 and check["unmatched"] == 0
    assert card["metrics"]["AP"] == 31.25 and card["classes"] == ["cat", "dog", "cow"]
    assert card["input"]["channels"] == "RGB"
    (resize,) = card["input"]["resized_for_evaluation"]
    assert resize == {"class": resize["class"], "short_edge_length": 96, "max_size": 128}
    text = (folder / "README.md").read_text()
    assert "31.2 (given)" in text or "31.2 on never_registered (given)" in text
    printed = capsys.readouterr().out
    assert "model.onnx: " in printed
    # The ResNet of the toy has one block in each stage, which no depth of Detectron2 has.
    reason = card["left_out"]["config_yacs.yaml"]
    assert reason.startswith("its ResNet has 1, 1, 1, 1 blocks (BasicBlock) in its stages")
    assert f"No `config_yacs.yaml`: {reason}." in text
    assert f"config_yacs.yaml: left out, because {reason}" in printed


@pytest.mark.parametrize("batch", [None, 3])
def test_the_lines_of_the_card_run(arguments, onnx, tmp_path, monkeypatch, batch):
    assert export.main([*arguments, *(["--batch", str(batch)] if batch else [])]) == 0
    monkeypatch.chdir(tmp_path / "out")
    pixels = cv2.imread(str(tmp_path / "picture.png"))
    # Twice the size at which the config evaluates. PNG under this name has no loss.
    cv2.imwrite("twice.png", cv2.resize(pixels, (256, 160)))
    Path("twice.png").rename("image.jpg")
    names: dict = {}
    results = []
    for snippet in Path("README.md").read_text().split("```python\n")[1:]:
        exec(snippet.split("```")[0], names)
        if "boxes" not in names:
            continue  # it reads the picture
        boxes, scores = (torch.as_tensor(names.pop(name)) for name in ("boxes", "scores"))
        assert len(scores) == len(boxes) == len(names.pop("classes")) > 0
        if "image_index" in names:  # the same image three times
            index = torch.as_tensor(names.pop("image_index"))
            assert index.bincount().tolist() == [len(scores) // 3] * 3
            boxes, scores = boxes[index == 1], scores[index == 1]
        results.append((scores, boxes))
    assert len(results) == 4
    for scores, boxes in results[1:]:
        torch.testing.assert_close(scores, results[0][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes, results[0][1], atol=0.05, rtol=0)
    assert results[0][1].max() > 128


def test_detectron2_loads_config_and_checkpoint(arguments, trained, picture, tmp_path):
    assert export.main([*arguments, *PLAIN]) == 0
    folder = tmp_path / "out"
    assert not (folder / "model.onnx").exists()
    cfg = LazyConfig.load(str(folder / "config.yaml"))
    assert cfg.train.init_checkpoint == "model.pth" and "train" not in cfg.dataloader
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(str(folder / "model.pth"))
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    again = Detector(folder / "config.yaml", folder / "model.safetensors", device="cpu")
    before = Detector(arguments[0], arguments[2], device="cpu")
    assert torch.equal(again(picture).scores, before(picture).scores)


def test_of_a_distiller_the_student_and_what_taught_it(arguments, zoo, trained, tmp_path):
    from tests.model_zoo.conftest import CONFIG

    (zoo / "toy/distill.py").write_text(CONFIG + DISTILLED)
    extra = {"distillation.mimic.adapters.p3.weight": torch.zeros(8, 8, 1, 1)}
    torch.save({"model": {**trained.state_dict(), **extra}}, zoo / "toy/model_final.pth")
    lines = [
        {"bbox/AP": 1.0, "iteration": 9},
        {"total_loss": 2.0},
        {"bbox/AP": 28.5, "bbox/APl": None},
    ]
    (zoo / "toy/metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"bbox/AP": 9')
    arguments[:3] = ["toy/distill.py", "--weights", str(zoo / "toy/model_final.pth")]
    assert export.main([*arguments, *PLAIN]) == 0
    card = json.loads((tmp_path / "out/model_card.json").read_text())
    assert card["detector"] == "RetinaNet"
    assert card["metrics"] == {
        "AP": 28.5,
        "from": "metrics.json of the run",
        "data": ["never_registered"],
    }
    assert card["teacher"]["weights"] == "gone.pth" and "retinanet" in card["teacher"]["model"]
    assert card["methods"]["mimic"]["class"].endswith("Mimic")
    weights = torch.load(tmp_path / "out/model.pth", weights_only=True)["model"]
    assert weights.keys() == trained.state_dict().keys()
    cfg = LazyConfig.load(str(tmp_path / "out/config.yaml"))
    assert "teacher" not in cfg.model and "methods" not in cfg.model


def test_a_students_own_config_gets_its_teacher_from_the_run(arguments, zoo, tmp_path, capsys):
    from tests.model_zoo.conftest import CONFIG

    (zoo / "toy/distill.py").write_text(CONFIG + DISTILLED)
    run, weights = zoo / "run", zoo / "run/model_final.pth"
    run.mkdir()
    shutil.copy(zoo / "toy/student.pth", weights)
    cfg = LazyConfig.load(str(zoo / "toy/distill.py"))
    cfg.model.teacher.weights = str(tmp_path / "far/away/teacher.pth")
    cfg.made = ShapeSpec(channels=3)  # LazyConfig.save writes objects, too
    LazyConfig.save(cfg, str(run / "config.yaml"))
    arguments[2] = str(weights)
    assert export.main([*arguments, *PLAIN]) == 0
    card = json.loads((tmp_path / "out/model_card.json").read_text())
    assert card["methods"]["mimic"]["class"].endswith("Mimic")
    assert card["teacher"]["weights"] == "away/teacher.pth"  # without the folders of this machine
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.mkdir [made]", "model: {teacher: [", "a: ${b", "- 1"]
)
def test_a_config_beside_the_weights_is_only_read(arguments, zoo, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    shutil.copy(zoo / "toy/student.pth", tmp_path / "student.pth")
    (tmp_path / "config.yaml").write_text(text)
    arguments[2] = str(tmp_path / "student.pth")
    assert export.main([*arguments, *PLAIN]) == 0
    assert json.loads((tmp_path / "out/model_card.json").read_text())["teacher"] is None
    assert not (tmp_path / "made").exists()


def test_values_that_come_from_other_sections(arguments, zoo, trained, picture, tmp_path):
    # As in Detectron2's common/data/coco.py.
    text = (zoo / "toy/student.py").read_text()
    text = text.replace(
        'max_size=128)],\n            image_format="RGB"',
        'max_size=128)],\n            image_format="${...train.mapper.image_format}"',
    )
    text += 'dataloader["train"]["mapper"] = dict(image_format="RGB")\n'
    text += 'optimizer = dict(lr="${oc.env:NOT_SET_HERE}")\n'
    (zoo / "toy/student.py").write_text(text)
    assert export.main([*arguments, *PLAIN]) == 0
    cfg = LazyConfig.load(str(tmp_path / "out/config.yaml"))
    assert cfg.dataloader.test.mapper.image_format == "RGB"
    detector = Detector(tmp_path / "out/config.yaml", tmp_path / "out/model.pth", device="cpu")
    assert torch.equal(
        detector(picture).scores, Detector(*arguments[:3:2], device="cpu")(picture).scores
    )


def test_names_of_classes_that_a_run_has_kept(arguments, zoo, tmp_path):
    content = torch.load(arguments[2], weights_only=True)
    weights = content.get("model", content)
    record = {"hooks": {"RunRecord": {"classes": ["cat", "dog", "cow"]}}}
    torch.save({"model": weights, "trainer": record}, arguments[2])
    assert export.main([*arguments, *PLAIN]) == 0
    card = json.loads((tmp_path / "out/model_card.json").read_text())
    assert card["classes"] == ["cat", "dog", "cow"]


def test_metrics_are_those_of_the_checkpoint(tmp_path):
    assert metrics_of_run(tmp_path / "model_final.pth") == {}  # there is no file
    lines = [
        {"bbox/AP": 11.0, "ema/bbox/AP": 13.0, "iteration": 99},
        {"bbox/AP": 55.0, "ema/bbox/AP": 57.0, "iteration": 199},
        {"bbox/AP": 53.0, "ema/bbox/AP": 56.0, "iteration": 200},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    torch.save({"iteration": 199}, tmp_path / "student_best.pth")
    expected = {
        "model_0000099.pth": 11.0,
        "model_0000149.pth": None,
        "model_final.pth": 53.0,
        "student_best.pth": 55.0,
        "student_ema_final.pth": 56.0,
        "renamed.pth": None,
    }
    for name, ap in expected.items():
        assert metrics_of_run(tmp_path / name).get("AP") == ap, name


@pytest.mark.parametrize("batch", [[], ["--batch", "2"]])
def test_int8_with_the_ap_of_both(arguments, onnx, zoo, tmp_path, batch):
    files = toys.coco_dataset(tmp_path / "images", n=3, classes=3)
    register_coco_instances("never_registered", {}, *map(str, files))
    with (zoo / "toy/student.py").open("a") as config:
        config.write(EVALUATION)
    try:
        assert export.main([*arguments, "--formats", "onnx", "--int8", *batch]) == 0
    finally:
        DatasetCatalog.remove("never_registered")
        MetadataCatalog.remove("never_registered")
    card = json.loads((tmp_path / "out/model_card.json").read_text())
    accuracies = [card["files"][name]["AP"] for name in ("model.onnx", "model_int8.onnx")]
    assert all(0 <= x <= 100 for x in accuracies)
    written = onnx.load(str(tmp_path / "out/model_int8.onnx"))
    int8 = [x for x in written.graph.initializer if x.data_type == onnx.TensorProto.INT8]
    assert len(int8) > 10
    detector = OnnxDetector(tmp_path / "out/model_int8.onnx")
    assert detector.classes == ("0", "1", "2") and detector.input_format == "RGB"
    # Of the traced image's shapes, none may be left: there are no candidates in a black one.
    assert not written.graph.value_info
    (black,) = detector([{"image": torch.zeros(3, 96, 128, dtype=torch.uint8)}])
    assert black["instances"].image_size == (96, 128)


def test_a_file_that_differs_is_an_error_and_leaves_nothing(arguments, onnx, monkeypatch, tmp_path):
    before = sorted(x.name for x in tmp_path.iterdir())
    write = run.write_torchscript

    def write_wrong(model, image, path):
        model.test_score_thresh = 0.7
        write(model, image, path)
        model.test_score_thresh = 0.05

    monkeypatch.setattr(run, "write_torchscript", write_wrong)
    with pytest.raises(ValueError, match=r"model\.ts: expected the detections of the Detectron2"):
        export.main(arguments)
    assert sorted(x.name for x in tmp_path.iterdir()) == before


def test_places_for_the_files(arguments, zoo, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    arguments[0] = str(zoo / "toy/student.py")
    with pytest.raises(ValueError, match="expected a folder that can be made, found the current"):
        export.main([*arguments[:-1], "."])
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert export.main([*arguments[:-1], str(tmp_path / "link"), *PLAIN]) == 0
    assert (tmp_path / "target/model.pth").exists() and (tmp_path / "link").is_symlink()


def test_mistakes_are_named(arguments, zoo, tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r"--int8: expected the config's test set to be registered"
    ):
        export.main([*arguments, "--int8"])
    given = arguments.index("--images")
    bare = arguments[:given] + arguments[given + 2 :]
    with pytest.raises(ValueError, match=r"--images: expected images, .* Add --images PATH"):
        export.main(bare)
    with pytest.raises(SystemExit):
        export.main([*arguments, "--batch", "0"])
    assert "--batch: expected at least 1, found 0" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--ap: expected a number >= 0 and <= 100, found 101"):
        export.main([*arguments, "--ap", "101"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    with pytest.raises(
        FileExistsError, match=r"--output: expected a new or an empty folder, found"
    ):
        export.main([*arguments, *PLAIN])


def test_a_detector_that_finds_nothing_is_an_error(arguments, zoo, tmp_path):
    model = toys.retinanet(input_format="RGB")  # random weights: all scores are low
    torch.save({"model": model.state_dict()}, zoo / "toy/student.pth")
    with pytest.raises(
        ValueError, match=r"--images: expected a picture .* found no detection on 1"
    ):
        export.main([*arguments, "--formats", "torchscript"])
    assert not (tmp_path / "out").exists()
