"""The folder of a dataset is complete or absent, and replaced only if the user says so."""

import errno
import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data.convert import Dataset, folder, write_dataset
from d2kd.data.folders import register_folder


def dataset(tmp_path, boxes=1, splits=("train",)):
    """A dataset of one picture a split, which is in a folder of its own."""
    content, files = {}, {}
    for split in splits:
        source = tmp_path / "originals" / f"{split}.png"
        source.parent.mkdir(exist_ok=True)
        source.write_text(f"pixels of {split}")
        box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
        content[split] = {
            "images": [{"id": 1, "file_name": f"x/{split}.png", "width": 9, "height": 9}],
            "annotations": [{"id": i + 1, **box} for i in range(boxes)],
            "categories": [{"id": 1, "name": "cow"}],
        }
        files[split] = [(source, f"x/{split}.png")]
    return Dataset(content, files, [])


def test_the_folder_registers_itself(tmp_path):
    output = tmp_path / "data" / "herd"
    assert write_dataset(output, dataset(tmp_path, splits=("train", "val"))) == 0
    assert register_folder(output) == ["herd_train", "herd_val"]
    try:
        (record,) = DatasetCatalog.get("herd_val")
        assert record["file_name"] == str(output / "val" / "x" / "val.png")
        assert record["annotations"][0]["bbox"] == [1, 2, 3, 4]
    finally:
        for name in ("herd_train", "herd_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert os.listdir(tmp_path / "data") == ["herd"]


def test_images_are_hard_links_or_copies(tmp_path, monkeypatch):
    converted = dataset(tmp_path)
    original = tmp_path / "originals" / "train.png"
    link = tmp_path / "originals" / "link.png"
    link.symlink_to(original)
    converted.files["train"][0] = (link, "x/train.png")
    assert write_dataset(tmp_path / "linked", converted) == 0
    assert os.path.samefile(tmp_path / "linked" / "train" / "x" / "train.png", original)
    assert not (tmp_path / "linked" / "train" / "x" / "train.png").is_symlink()

    def other_disk(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    assert write_dataset(tmp_path / "copied", converted) == 1
    copy = tmp_path / "copied" / "train" / "x" / "train.png"
    assert copy.read_text() == "pixels of train" and not os.path.samefile(copy, original)
    assert write_dataset(tmp_path / "copied", converted) is None


def test_the_same_dataset_is_left_alone(tmp_path):
    output = tmp_path / "herd"
    write_dataset(output, dataset(tmp_path))
    (output / "extra").mkdir()  # images without labels
    before = (output / "annotations" / "train.json").stat().st_mtime_ns
    assert write_dataset(output, dataset(tmp_path)) is None
    assert (output / "annotations" / "train.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["boxes", "splits", "pixels", "missing", "half a file"])
def test_another_dataset_is_replaced_only_on_demand(tmp_path, change):
    output = tmp_path / "herd"
    write_dataset(output, dataset(tmp_path))
    image = output / "train" / "x" / "train.png"
    other = dataset(
        tmp_path, **{"boxes": {"boxes": 2}, "splits": {"splits": ["train", "val"]}}.get(change, {})
    )
    if change in ("pixels", "missing"):
        image.unlink()
    if change == "pixels":
        image.write_text("other pixels")
    if change == "half a file":
        (output / "annotations" / "train.json").write_text('{"images": [')
    with pytest.raises(FileExistsError, match=r"herd: expected no folder, .*--replace"):
        write_dataset(output, other)
    assert write_dataset(output, other, replace=True) == 0
    assert json.loads((output / "annotations" / "train.json").read_text()) == other.splits["train"]
    assert image.read_text() == "pixels of train"
    assert sorted(os.listdir(tmp_path)) == ["herd", "originals"]


@pytest.mark.parametrize("other", ["notes.txt", "annotations/notes.txt", "extra/photo.png"])
def test_a_folder_with_other_files_is_never_removed(tmp_path, other):
    output = tmp_path / "herd"
    write_dataset(output, dataset(tmp_path))
    (output / other).parent.mkdir(exist_ok=True)
    (output / other).write_text("precious")
    with pytest.raises(FileExistsError, match="Move it away"):
        write_dataset(output, dataset(tmp_path, boxes=2), replace=True)
    assert (output / other).read_text() == "precious"


def test_originals_inside_the_output_are_never_removed(tmp_path):
    converted = dataset(tmp_path)
    (tmp_path / "originals" / "annotations").mkdir()
    with pytest.raises(FileExistsError):
        write_dataset(tmp_path / "originals", converted, replace=True)
    (tmp_path / "herd" / "train").mkdir(parents=True)
    (tmp_path / "herd" / "annotations").mkdir()
    (tmp_path / "herd" / "annotations" / "train.json").write_text("{}")
    original = tmp_path / "herd" / "train" / "1.png"
    original.write_text("pixels")
    converted.files["train"][0] = (original, "1.png")
    with pytest.raises(ValueError, match="expected a folder without originals"):
        write_dataset(tmp_path / "herd", converted, replace=True)
    assert original.read_text() == "pixels"


@pytest.mark.parametrize("exists", [False, True])
def test_an_interruption_leaves_what_was_there(tmp_path, exists):
    output = tmp_path / "herd"
    if exists:
        write_dataset(output, dataset(tmp_path))
    converted = dataset(tmp_path, boxes=2, splits=("train", "val"))
    (tmp_path / "originals" / "val.png").unlink()  # the last file cannot be read
    with pytest.raises(FileNotFoundError):
        write_dataset(output, converted, replace=True)
    assert sorted(os.listdir(tmp_path)) == (["herd", "originals"] if exists else ["originals"])
    if exists:
        assert len(json.loads((output / "annotations/train.json").read_text())["annotations"]) == 1


@pytest.mark.parametrize("boxes", [1, 2])
def test_another_process_makes_the_folder_in_the_meantime(tmp_path, monkeypatch, boxes):
    output, fill = tmp_path / "herd", folder._fill

    def meet(temporary, converted):
        copied = fill(temporary, converted)
        fill(output, dataset(tmp_path, boxes))
        return copied

    monkeypatch.setattr(folder, "_fill", meet)
    if boxes == 1:  # the same dataset
        assert write_dataset(output, dataset(tmp_path)) is None
    else:
        with pytest.raises(FileExistsError, match=r"herd: expected no folder, .*found something"):
            write_dataset(output, dataset(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["herd", "originals"]
    content = json.loads((output / "annotations" / "train.json").read_text())
    assert len(content["annotations"]) == boxes


def test_an_empty_folder_and_a_link_to_a_folder_are_filled(tmp_path):
    (tmp_path / "disk" / "herd").mkdir(parents=True)
    (tmp_path / "herd").symlink_to(tmp_path / "disk" / "herd")
    assert write_dataset(tmp_path / "herd", dataset(tmp_path)) == 0
    assert (tmp_path / "disk" / "herd" / "train" / "x" / "train.png").is_file()
