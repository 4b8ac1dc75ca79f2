"""CrowdHuman: reading its labels, converting them to COCO's format, and registering them."""

import json
import os

import numpy as np
import pytest
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from PIL import Image
from pycocotools.coco import COCO

from d2kd.audit import audit_config
from d2kd.data import crowdhuman
from d2kd.data.images import EXIF_ORIENTATION

SIZES = [(40, 30), (25, 50), (64, 48)]  # width, height
LINES = [
    {
        "ID": "273271,c9db000d5146c15",
        "gtboxes": [
            {"tag": "person", "fbox": [-5, 2, 20, 30], "extra": {"box_id": 0, "occ": 0}},
            {"tag": "person", "fbox": [1, 1, 0, 9], "extra": {"ignore": 0}},  # no width
            {"tag": "person", "fbox": [7, 8, 9, 10], "extra": {"ignore": 1}},
            {"tag": "mask", "fbox": [3, 4, 5.5, 6], "extra": {"box_id": 3}},
        ],
    },
    {"ID": "empty", "gtboxes": []},
    {
        "ID": "last",
        "gtboxes": [
            {"tag": "person", "fbox": [1, 2, 3, -4], "extra": {}},  # no height
            {"tag": "person", "fbox": [10, 10, 5, 8]},  # no extra at all
        ],
    },
]


def write(root, split: str = "val", lines: list = LINES, sizes: list = SIZES):
    folder = root / "crowdhuman"
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    for line, size in zip(lines, sizes, strict=True):
        Image.new("RGB", size).save(folder / "Images" / f"{line['ID']}.jpg")
    odgt_file = folder / f"annotation_{split}.odgt"
    odgt_file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    return odgt_file


@pytest.fixture
def registered(tmp_path):
    """CrowdHuman registered below tmp_path. Detectron2's catalogs are restored afterwards."""
    saved = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    crowdhuman.register_crowdhuman(tmp_path)
    yield tmp_path
    DatasetCatalog.data, MetadataCatalog.data = saved


def test_conversion_by_hand(tmp_path):
    write(tmp_path)
    (json_file,) = crowdhuman.convert_crowdhuman(tmp_path)
    assert json_file == tmp_path / "crowdhuman" / "annotation_val.json"
    first = "273271,c9db000d5146c15.jpg"
    one = {"category_id": 1}
    assert json.loads(json_file.read_text()) == {
        "images": [
            {"id": 0, "file_name": first, "width": 40, "height": 30},
            {"id": 1, "file_name": "empty.jpg", "width": 25, "height": 50},
            {"id": 2, "file_name": "last.jpg", "width": 64, "height": 48},
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "bbox": [-5, 2, 20, 30], "area": 600, "iscrowd": 0} | one,
            {"id": 2, "image_id": 0, "bbox": [7, 8, 9, 10], "area": 90, "iscrowd": 1} | one,
            {"id": 3, "image_id": 0, "bbox": [3, 4, 5.5, 6], "area": 33, "iscrowd": 1} | one,
            {"id": 4, "image_id": 2, "bbox": [10, 10, 5, 8], "area": 40, "iscrowd": 0} | one,
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    assert len(COCO(json_file).getAnnIds(iscrowd=False)) == 2


def test_reading_keeps_every_box(tmp_path):
    people = crowdhuman.read_odgt(write(tmp_path))
    assert [image.name for image in people] == ["273271,c9db000d5146c15", "empty", "last"]
    assert [image.boxes.shape for image in people] == [(4, 4), (0, 4), (2, 4)]
    assert people[0].ignored.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(people[2].boxes, [[1, 2, 3, -4], [10, 10, 5, 8]])
    assert people[1].ignored.dtype == bool


def test_only_headers_of_images_are_read(tmp_path):
    odgt_file = write(tmp_path)
    picture = odgt_file.parent / "Images" / "last.jpg"
    data = picture.read_bytes()
    picture.write_bytes(data[: data.index(b"\xff\xda") + 14])  # up to where the pixels start
    with pytest.raises(OSError), Image.open(picture) as image:
        image.load()
    (json_file,) = crowdhuman.convert_crowdhuman(tmp_path)
    assert json.loads(json_file.read_text())["images"][2]["width"] == 64


def test_size_of_a_turned_image_is_the_one_that_detectron2_reads(registered):
    odgt_file = write(registered, lines=LINES[2:], sizes=[(64, 48)])
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("RGB", (64, 48)).save(odgt_file.parent / "Images" / "last.jpg", exif=exif)
    (image,) = DatasetCatalog.get("crowdhuman_val")
    assert (image["width"], image["height"]) == (48, 64)
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="BGR")
    assert mapper(image)["image"].shape == (3, 64, 48)  # raises at another size


def test_converted_once_and_again_when_the_labels_are_newer(tmp_path):
    odgt_file = write(tmp_path)
    (json_file,) = crowdhuman.convert_crowdhuman(tmp_path)
    json_file.write_text("mine")
    assert crowdhuman.convert_crowdhuman(tmp_path) == [json_file]
    assert json_file.read_text() == "mine"
    write(tmp_path, lines=LINES[:1], sizes=SIZES[:1])
    newer = json_file.stat().st_mtime + 10
    os.utime(odgt_file, (newer, newer))
    crowdhuman.convert_crowdhuman(tmp_path)
    assert len(json.loads(json_file.read_text())["images"]) == 1


def test_killed_while_writing_leaves_nothing(tmp_path, monkeypatch):
    folder = write(tmp_path).parent
    before = sorted(folder.iterdir())

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            crowdhuman.convert_crowdhuman(tmp_path)
    assert sorted(folder.iterdir()) == before
    (json_file,) = crowdhuman.convert_crowdhuman(tmp_path)
    assert len(json.loads(json_file.read_text())["images"]) == 3


def test_registered_in_detectron2(registered):
    write(registered, "train")
    write(registered, "val")
    images = DatasetCatalog.get("crowdhuman_val")
    assert [x["image_id"] for x in images] == [0, 1, 2]
    assert images[0]["file_name"].endswith("crowdhuman/Images/273271,c9db000d5146c15.jpg")
    assert [x["iscrowd"] for x in images[0]["annotations"]] == [0, 1, 1]
    meta = MetadataCatalog.get("crowdhuman_val")
    assert meta.thing_classes == ["person"]
    assert os.path.exists(meta.json_file) and os.path.exists(meta.odgt_file)
    # In training: no image without people, no ignored boxes.
    images = get_detection_dataset_dicts("crowdhuman_train")
    assert [x["image_id"] for x in images] == [0, 2]
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    boxes = mapper(images[0])["instances"].gt_boxes.tensor
    assert boxes.tolist() == [[0, 2, 15, 30]]  # Detectron2 clips it at the border


def test_registering_reads_nothing_and_the_last_root_counts(registered, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write(other)
    crowdhuman.register_crowdhuman(other)
    assert MetadataCatalog.get("crowdhuman_val").json_file.startswith(str(other))
    assert len(DatasetCatalog.get("crowdhuman_val")) == 3
    assert not (registered / "crowdhuman").exists()


def test_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write(tmp_path, "train")
    (json_file,) = crowdhuman.convert_crowdhuman()
    assert json_file == tmp_path / "crowdhuman" / "annotation_train.json"


def test_no_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"crowdhuman: expected annotation_train\.odgt or"):
        crowdhuman.convert_crowdhuman(tmp_path)


def test_a_missing_image_is_named(registered):
    folder = write(registered).parent
    (folder / "Images" / "empty.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"Images/empty\.jpg"):
        crowdhuman.convert_crowdhuman(registered)
    assert not (folder / "annotation_val.json").exists()


@pytest.mark.parametrize(
    "line",
    ['{"ID": "a"}', '{"ID": "a", "gtboxes": [{"tag": "person"}]}', '{"ID": "a", "gtb', "[]",
     '{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}'],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line):
    odgt_file = tmp_path / "annotation_val.odgt"
    odgt_file.write_text('{"ID": "fine", "gtboxes": []}\n' + line)
    with pytest.raises(ValueError, match=r"annotation_val\.odgt, line 2: expected a JSON object"):
        crowdhuman.read_odgt(odgt_file)


def test_no_images_at_all(tmp_path):
    odgt_file = tmp_path / "annotation_val.odgt"
    odgt_file.write_text("")
    assert crowdhuman.read_odgt(odgt_file) == []


def test_missing_files_are_reported_before_training(registered):
    from detectron2.config import LazyCall as L
    from detectron2.data import get_detection_dataset_dicts
    from omegaconf import OmegaConf

    test = {"dataset": L(get_detection_dataset_dicts)(names="crowdhuman_val")}
    flags = {"allow_objects": True}
    cfg = OmegaConf.create({"model": {}, "dataloader": {"test": test}}, flags=flags)
    with pytest.raises(ValueError, match=r"crowdhuman_val.*annotation_val\.odgt"):
        audit_config(cfg)
