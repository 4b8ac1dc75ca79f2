"""Students by name, the files that hold them, and the table of those that come with d2kd."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from safetensors.torch import load_file

from d2kd import Teacher, model_zoo
from d2kd.checkpoint import load_strictly
from d2kd.model_zoo import students
from d2kd.tools.publish import MAX_BYTES
from tests import toys


def test_three_lines(published, trained, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "image.jpg"), toys.image()["image"].permute(1, 2, 0).numpy())
    found = model_zoo.get_detector("toy_tiny", device="cpu")
    boxes = found(tmp_path / "image.jpg")
    assert len(boxes) > 0 and boxes.has("pred_boxes") and boxes.has("scores")
    assert found.classes == ("cat", "dog", "cow") and not found.model.training
    for key, value in trained.state_dict().items():
        assert torch.equal(found.model.state_dict()[key], value), key


def test_a_name_with_a_typo(published):
    with pytest.raises(ValueError, match=r"found 'toy_tinny'\. Did you mean toy_tiny\?$"):
        model_zoo.get_detector("toy_tinny")
    with pytest.raises(ValueError, match=r"trained student \(toy_tiny\), found 'xyz'\.$"):
        model_zoo.get_detector("xyz")


@pytest.mark.parametrize("name", [None, 3, ["toy_tiny"]])
def test_a_name_that_is_no_text(published, name):
    with pytest.raises(ValueError, match=r"expected the name of a trained student .*, found"):
        model_zoo.get_detector(name)
    with pytest.raises(FileNotFoundError, match=r"the name of one of d2kd's, .*, found"):
        model_zoo.get_config(name)


def test_a_table_without_rows(zoo):
    assert model_zoo.list_detectors() == []
    with pytest.raises(ValueError, match="no name, because this version has no weights"):
        model_zoo.get_detector("toy_tiny")


def test_a_changed_file_is_refused(published):
    content = bytearray(published.path.read_bytes())
    content[-1] ^= 1
    published.path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    message = rf"toy_tiny: expected weights with sha256 {published.sha256}, found {found}"
    with pytest.raises(ValueError, match=message):
        model_zoo.get_detector("toy_tiny")
    published.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"toy_tiny: expected its weights at .*toy_tiny\."):
        model_zoo.get_detector("toy_tiny")


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A distiller's checkpoint in the middle of a run."""
    adapter = {"distillation.fgd.adapters.p3.weight": torch.zeros(8, 8, 1, 1)}
    path = tmp_path / "model_0000099.pth"
    content = {"model": {**trained.state_dict(), **adapter}, "optimizer": {}, "iteration": 99}
    torch.save(content, path)
    return path


def test_the_file_has_the_students_tensors_and_nothing_else(zoo, checkpoint, trained, tmp_path):
    path = tmp_path / "student.safetensors"
    digest = model_zoo.save_student("toy/student.py", checkpoint, path)
    tensors, expected = load_file(path), trained.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype
               for k, v in expected.items())  # fmt: skip
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    # Detectron2 alone, without d2kd, can use it.
    toys.retinanet(input_format="RGB").load_state_dict(tensors)
    # The same student gives the same bytes.
    assert model_zoo.save_student("toy/student.py", path, tmp_path / "b.safetensors") == digest


def test_half_as_large_is_rounded_and_loaded_as_fp32(zoo, checkpoint, trained, tmp_path):
    path = tmp_path / "half.safetensors"
    model_zoo.save_student("toy/student.py", checkpoint, path, half=True)
    loaded = model_zoo.Detector("toy/student.py", path, device="cpu").model.state_dict()
    stored = load_file(path)
    for key, value in trained.state_dict().items():
        floating = value.dtype == torch.float32
        assert stored[key].dtype == (torch.float16 if floating else value.dtype)
        assert loaded[key].dtype == value.dtype
        # 11 bits: at most half of the last one, 2 ** -11 of the value, or of the least normal one
        torch.testing.assert_close(loaded[key], value, rtol=2**-11, atol=2**-25)


def test_what_fp16_cannot_hold_is_an_error(zoo, trained, tmp_path):
    trained.head.cls_score.bias.data[0] = 7e4
    torch.save({"model": trained.state_dict()}, tmp_path / "large.pth")
    with pytest.raises(ValueError, match=r"found 7e\+04 in head\.cls_score\.bias"):
        model_zoo.save_student(
            "toy/student.py", tmp_path / "large.pth", tmp_path / "x.safetensors", half=True
        )
    assert not list(tmp_path.glob("*x.safetensors*"))


def test_tensors_with_two_names_are_saved_under_both(zoo, trained, tmp_path):
    trained.again = trained.head.cls_score
    (zoo / "toy/twice.py").write_text(
        (zoo / "toy/student.py").read_text()
        + "\n\ndef twice():\n    model = toys.retinanet()\n"
        + "    model.again = model.head.cls_score\n    return model\n\n\nmodel = L(twice)()\n"
    )
    torch.save({"model": trained.state_dict()}, tmp_path / "twice.pth")
    path = tmp_path / "twice.safetensors"
    model_zoo.save_student(zoo / "toy/twice.py", tmp_path / "twice.pth", path)
    assert torch.equal(load_file(path)["again.bias"], trained.head.cls_score.bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(path="x.pth"), r"expected the name of a \.safetensors file, found 'x\.pth'"),
        (dict(max_bytes=100), r"expected at most 100 bytes, found [\d,]+\. half=True stores"),
    ],
)
def test_files_that_would_be_wrong_are_not_written(zoo, checkpoint, tmp_path, change, message):
    given = dict(config="toy/student.py", checkpoint=checkpoint, path="x.safetensors")
    given = {**given, **change, "path": tmp_path / change.get("path", "x.safetensors")}
    message = message.replace("'x", f"'{tmp_path}/x")
    with pytest.raises(ValueError, match=message):
        model_zoo.save_student(**given)
    assert not given["path"].exists()


def test_other_parts_of_d2kd_read_the_file(published, trained):
    assert "0 missing" in load_strictly(toys.retinanet(), str(published.path))
    teacher = Teacher(toys.retinanet(input_format="RGB"), str(published.path))
    assert torch.equal(teacher.model.head.cls_score.weight, trained.head.cls_score.weight)
    published.path.write_bytes(published.path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"toy_tiny\.safetensors: expected a safetensors file"):
        load_strictly(toys.retinanet(), str(published.path))


# The table that comes with d2kd.

SHIPPED = model_zoo.list_detectors()


def test_the_table_is_sorted_and_each_file_in_it_exists():
    rows = json.loads(students.TABLE.read_text())
    assert list(rows) == sorted(rows)
    weights = {entry["weights"] for entry in rows.values()}
    files = {p.relative_to(students.CONFIGS).as_posix()
             for p in students.CONFIGS.rglob("*.safetensors")}  # fmt: skip
    assert files == weights


@pytest.mark.parametrize("name", SHIPPED)
def test_each_student_loads_and_is_as_the_table_says(name):
    if "timm/" in str(model_zoo.get_config(model_zoo.find_entry(name).config).model):
        pytest.importorskip("timm")
    entry = model_zoo.find_entry(name)
    assert entry.path.stat().st_size <= MAX_BYTES and 0 < entry.ap < 100
    found = model_zoo.get_detector(name, device="cpu")
    assert sum(p.numel() for p in found.model.parameters()) == entry.parameters
    cfg = model_zoo.get_config(entry.config)
    node = cfg.model.get("student", cfg.model)
    count = node.get("num_classes") or node.roi_heads.num_classes
    assert len(set(entry.classes)) == len(entry.classes) == count
    assert found.input_format == instantiate(cfg.dataloader.test.mapper).image_format
    assert Path(students.CONFIGS.resolve().parent, entry.training.split("#")[0]).is_file()
