"""`d2kd predict`: pictures and a COCO file."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from d2kd import model_zoo
from d2kd.tools import predict


@pytest.fixture
def images(tmp_path):
    """Two pictures of other sizes, and a text file between them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(50, 80, 3), (64, 40, 3)]):
        pixels = np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
    (folder / "0.txt").write_text("no image")
    return folder


def run(images, output, *more: str) -> dict:
    argv = ["toy_tiny", "--images", str(images), "--output", str(output), "--device", "cpu"]
    assert predict.main([*argv, *more]) == 0
    return json.loads((output / "predictions.json").read_text())


def test_the_file_has_what_the_detector_finds(zoo, published, images, tmp_path, capsys):
    found = run(images, tmp_path / "found", "--threshold", "0.4")
    assert [(x["id"], x["height"], x["width"]) for x in found["images"]] == [
        (0, 50, 80),
        (1, 64, 40),
    ]
    assert found["categories"] == [
        dict(id=i + 1, name=name) for i, name in enumerate(["cat", "dog", "cow"])
    ]
    detector = model_zoo.get_detector("toy_tiny", device="cpu")
    for image in found["images"]:
        expected = detector(image["file_name"])
        expected = expected[expected.scores >= 0.4]
        rows = [x for x in found["annotations"] if x["image_id"] == image["id"]]
        assert len(rows) == len(expected) > 0
        x, y, w, h = torch.tensor([row["bbox"] for row in rows]).unbind(1)
        boxes = torch.stack([x, y, x + w, y + h], 1)
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
        assert [x["category_id"] - 1 for x in rows] == expected.pred_classes.tolist()
        assert [x["score"] for x in rows] == pytest.approx(expected.scores.tolist())
    coco = COCO(str(tmp_path / "found/predictions.json"))
    assert len(coco.getAnnIds()) == len(found["annotations"]) == len({*coco.getAnnIds()})


def test_a_picture_for_each_image(zoo, published, images, tmp_path):
    run(images, tmp_path / "found")
    for name, original, size in [
        ("00000_0.jpg", "0.png", (50, 80, 3)),
        ("00001_1.jpg", "1.png", (64, 40, 3)),
    ]:
        drawn = cv2.imread(str(tmp_path / "found" / name))
        assert drawn.shape == size
        assert (drawn != cv2.imread(str(images / original))).any()
    run(images, tmp_path / "bare", "--no-pictures")
    assert [x.name for x in (tmp_path / "bare").iterdir()] == ["predictions.json"]


def test_a_config_with_weights(zoo, images, tmp_path):
    argv = ["toy/student.py", "--weights", str(zoo / "toy/student.pth"), "--images", str(images)]
    argv += ["--output", str(tmp_path / "found"), "--no-pictures", "--device", "cpu"]
    assert predict.main(argv) == 0
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    assert [x["name"] for x in found["categories"]] == ["0", "1", "2"]  # no data set knows them


def test_a_threshold_that_is_too_high_is_told(zoo, published, images, tmp_path, capsys):
    found = run(images / "0.png", tmp_path / "most", "--threshold", "0.01")["annotations"]
    first, second = sorted((x["score"] for x in found), reverse=True)[:2]
    capsys.readouterr()
    one = str((first + second) / 2)
    assert len(run(images / "0.png", tmp_path / "one", "--threshold", one)["annotations"]) == 1
    output = capsys.readouterr().out
    assert "1 detection on 1 image, written" in output and "try --threshold" not in output
    run(images, tmp_path / "none", "--threshold", "1")
    output = capsys.readouterr().out
    assert "0 detections on 2 images, written" in output
    assert "2 of 2 images have no detection with a score of at least 1." in output
    assert "try --threshold" in output


def test_mistakes_are_named(zoo, published, images, tmp_path):
    output = tmp_path / "found"
    with pytest.raises(FileNotFoundError, match=r"expected an image or a folder .* no 'gone'"):
        run("gone", output)
    with pytest.raises(ValueError, match=r"device: expected cpu, cuda or cuda:N, found 'foo'"):
        run(images, output, "--device", "foo")
    with pytest.raises(ValueError, match=r"trained student \(toy_tiny\), found 'toy_tinny'. Did"):
        predict.main(["toy_tinny", "--images", str(images), "--output", str(output)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected images, found none in .*empty"):
        run(tmp_path / "empty", output)
    for threshold in ("7", "-0.1", "nan"):
        with pytest.raises(ValueError, match=r"--threshold: expected .* >= 0 and <= 1, found"):
            run(images, output, f"--threshold={threshold}")
    with pytest.raises(ValueError, match=r"the names of the 3 classes of toy_tiny, found 1: cat"):
        run(images, output, "--classes", "cat")
    argv = ["toy/student.py", "--images", str(images), "--output", str(output)]
    with pytest.raises(
        ValueError, match=r"--weights .* 'toy/student.py', found none. .* \(toy_tiny\)"
    ):
        predict.main(argv)


def test_no_image_that_can_be_read_is_an_error(zoo, published, images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"found none\.\n.* found another file. Replace"):
        run(tmp_path / "bad.png", tmp_path / "found")


def test_long_names_of_files_are_cut(zoo, published, images, tmp_path):
    path = tmp_path / f"{'x' * 245}.png"
    (images / "0.png").rename(path)
    run(path, tmp_path / "found")
    assert (tmp_path / f"found/00000_{'x' * 50}.jpg").exists()


def test_an_image_that_cannot_be_read_is_named_and_left_out(
    zoo, published, images, tmp_path, capsys
):
    paths = [images / name for name in ("0.png", "0.txt", "1.png")]
    argv = ["toy_tiny", "--images", *map(str, paths), "--output", str(tmp_path / "found")]
    assert predict.main([*argv, "--device", "cpu"]) == 1
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    assert [x["file_name"] for x in found["images"]] == [str(paths[0]), str(paths[2])]
    assert {x["image_id"] for x in found["annotations"]} == {0, 2}
    assert {x.name for x in (tmp_path / "found").glob("*.jpg")} == {"00000_0.jpg", "00002_1.jpg"}
    said = capsys.readouterr().err
    assert "1 of 3 images are left out" in said
    assert f"expected an image that can be read at '{paths[1]}', found" in said


def test_a_folder_with_files_is_refused_and_stays_as_it_is(zoo, published, images, tmp_path):
    run(images, tmp_path / "found")
    before = {x.name: x.read_bytes() for x in (tmp_path / "found").iterdir()}
    with pytest.raises(FileExistsError, match=r"--output: expected a new or an empty folder, fou"):
        run(images / "1.png", tmp_path / "found")
    assert {x.name: x.read_bytes() for x in (tmp_path / "found").iterdir()} == before
