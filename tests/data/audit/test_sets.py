"""One test for each kind of defect. The right counts follow from the change that is made."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.data.audit import (
    NOTE,
    REFUSED,
    WARNING,
    CocoSource,
    audit_coco,
    audit_records,
    audit_registered,
    describe,
)
from tests.data.audit import sets


def found(tmp_path, change=lambda table: None, save=sets.draw, **fields) -> dict:
    """Kind -> count of the defects of a set of 6 images with 12 boxes."""
    path = sets.write(tmp_path, "toy", "train", change, save, **fields)
    audited = audit_coco(CocoSource(str(path), str(tmp_path / "toy" / "train")), "toy_train")
    return {defect.kind: defect.count for defect in audited.defects}


def test_valid_set_has_no_defects_and_is_counted(tmp_path):
    path = sets.write(tmp_path, "toy", "train", lambda t: t["annotations"][0].update(iscrowd=1))
    audited = audit_coco(CocoSource(str(path), str(tmp_path / "toy" / "train")), "toy_train")
    assert not audited.defects and not audited.breaks_loading
    assert (audited.images, audited.boxes, audited.crowds, audited.empty) == (6, 12, 1, 0)
    assert audited.classes == ["red", "green", "blue"] and audited.used == 3


BOXES = {
    "nan": (sets.box(lambda x, y, w, h: [float("nan"), y, w, h], 3), {"not_finite": 4}),
    "infinite": (sets.box(lambda x, y, w, h: [x, y, float("inf"), h], 2), {"not_finite": 6}),
    "no width": (sets.box(lambda x, y, w, h: [x, y, 0, h], 2), {"empty": 6}),
    "negative": (sets.box(lambda x, y, w, h: [x, y, w, -h], 2), {"empty": 6}),
    "all empty": (sets.box(lambda x, y, w, h: [x, y, w, 0]), {"empty": 12, "no_usable": 12}),
    "outside": (sets.box(lambda x, y, w, h: [x + 500, y, w, h], 2), {"outside": 6}),
    "touches": (sets.box(lambda x, y, w, h: [64, y, w, h], 2), {"outside": 6}),
    "left of it": (sets.box(lambda x, y, w, h: [-w, y, w, h], 2), {"outside": 6}),
    "all outside": (sets.box(lambda x, y, w, h: [x, 99, w, h]), {"outside": 12, "no_usable": 12}),
    "beyond": (sets.box(lambda x, y, w, h: [x - 45, y, w + 45, h], 2), {"border": 6}),
    "tiny": (sets.box(lambda x, y, w, h: [x, y, w, 0.5], 2), {"tiny": 6}),
    "string": (sets.box(lambda x, y, w, h: [str(x), y, w, h], 2), {"malformed": 6}),
    "three numbers": (sets.box(lambda x, y, w, h: [x, y, w], 2), {"malformed": 6}),
    "five numbers": (sets.box(lambda x, y, w, h: [x, y, w, h, 0.9], 2), {"malformed": 6}),
    "none": (sets.every(lambda a: a.pop("bbox"), 2), {"malformed": 6}),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_that_are_no_boxes_are_counted(tmp_path, name):
    change, expected = BOXES[name]
    kinds = found(tmp_path, change)
    assert {k: kinds.get(k) for k in expected} == expected
    assert not set(kinds) - {*expected, "border"}


def test_relative_coordinates_are_refused(tmp_path):
    kinds = found(tmp_path, sets.box(lambda *numbers: [v / 64 for v in numbers]))
    assert kinds["relative"] == 12


def corners(x, y, w, h):
    return [x, y, x + w, y + h]


def test_corners_taken_for_width_and_height_are_found(tmp_path):
    kinds = found(tmp_path, sets.box(corners))
    # These boxes reach beyond the border as x, y, width, height by more than 5 % of the side.
    rows = np.array([a["bbox"] for a in sets.table()["annotations"]])
    far = (2 * rows[:, :2] + rows[:, 2:] > 64 * 1.05).any(1).sum()
    assert kinds["corners"] == far >= 4


def test_few_corners_are_no_proof(tmp_path):
    kinds = found(tmp_path, sets.box(lambda *_: [40, 10, 60, 30]), images=3, boxes=2)
    assert "corners" not in kinds and kinds["few_corners"] == 6


def test_large_and_sloppy_boxes_are_not_taken_for_corners(tmp_path):
    # Each image shows one object from edge to edge, and the boxes reach 2 pixels too far.
    assert "corners" not in found(tmp_path, sets.box(lambda *_: [1, 1, 65, 65]))
    # Bodies of people reach far beyond the image, as in CrowdHuman, but start anywhere.
    change = sets.box(lambda x, y, w, h: [x, y, w, 90], 2)
    assert "corners" not in found(tmp_path / "crowd", change)


def test_sizes_of_crowds_do_not_matter(tmp_path):
    def change(content):
        content["annotations"][0].update(iscrowd=1, bbox=[500, 0, 0, 0])

    assert found(tmp_path, change) == {}


def ids(function):
    def change(content):
        for i, annotation in enumerate(content["annotations"]):
            annotation["id"] = function(i)

    return change


def same_image_id(content):
    content["images"][3]["id"] = content["images"][2]["id"]


def set_all(key, value):
    return sets.every(lambda a: a.update({key: value}))


TABLE = {
    "image id": (same_image_id, "image_ids", 1),
    "same entry": (lambda t: t["images"].append(dict(t["images"][0])), "image_twice", 1),
    "no file name": (lambda t: t["images"][0].pop("file_name"), "image_entries", 1),
    "category id": (lambda t: t["categories"][1].update(id=1), "category_ids", 1),
    "mixed categories": (lambda t: t["categories"][1].update(id="x"), "category_ids", 1),
    "category without name": (lambda t: t["categories"][1].pop("name"), "category_entries", 1),
    "category of null": (lambda t: t["categories"][1].update(id=None), "category_entries", 1),
    "category of a float": (lambda t: t["categories"][1].update(id=2.0), "category_types", 1),
    "category of a list": (lambda t: t["categories"][1].update(id=[2]), "category_types", 1),
    "image of a list": (lambda t: t["images"][0].update(id=[1]), "image_types", 1),
    "file name of a number": (lambda t: t["images"][0].update(file_name=7), "image_types", 1),
    "category id of a list": (set_all("category_id", [1]), "annotation_types", 12),
    "unknown category": (sets.every(lambda a: a.update(category_id=9), 2), "unknown_category", 6),
    "no category": (sets.every(lambda a: a.pop("category_id"), 2), "annotation_entries", 6),
    "strangers": (sets.every(lambda a: a.update(image_id=99), 2), "strangers", 6),
    "ids of another type": (sets.every(lambda a: a.update(image_id=str(a["image_id"]))),
                            "all_strangers", 12),
    "ignore": (sets.every(lambda a: a.update(ignore=1), 2), "ignore", 6),
    "from 0": (ids(lambda i: i), "annotation_ids", 1),
    "repeated": (ids(lambda i: i // 2 + 1), "annotation_ids", 12),
    "strings": (ids(lambda i: f"a{i}"), "annotation_ids", 12),
    "no ids": (sets.every(lambda a: a.pop("id")), "annotation_ids", 12),
    "area": (sets.every(lambda a: a.pop("area"), 2), "no_area", 6),
    "negative area": (sets.every(lambda a: a.update(area=-1), 2), "no_area", 6),
    "area of NaN": (sets.every(lambda a: a.update(area=float("nan")), 2), "no_area", 6),
    "iscrowd": (sets.every(lambda a: a.pop("iscrowd"), 2), "no_iscrowd", 6),
    "sizes": (lambda t: [i.pop("width") for i in t["images"][:4]], "no_size", 4),
    "annotations": (lambda t: t.pop("annotations"), "no_annotations", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_mistakes_in_the_table_are_counted(tmp_path, name):
    change, kind, count = TABLE[name]
    assert found(tmp_path, change)[kind] == count


def test_categories_with_ids_of_floats_are_said_to_have_them(tmp_path):
    def change(content):
        for category in content["categories"]:
            category["id"] = float(category["id"])

    path = sets.write(tmp_path, "toy", "train", change)
    audited = audit_coco(CocoSource(str(path), str(tmp_path / "toy" / "train")), "toy_train")
    (defect,) = audited.defects  # and not that the annotations are of unknown categories
    level, text = describe(defect, "toy", "train")
    assert level == REFUSED and "lack" not in text
    assert "found 3 of 3 categories that have an id of another type" in text
    assert "such as {'id': 1.0, 'name': 'red'}" in text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": []}', '{"images": {}, "categories": []}']
)
def test_file_that_is_no_coco_file_is_named(tmp_path, text):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json: expected a .*COCO's format"):
        audit_coco(CocoSource(str(path), str(tmp_path)), "toy")


def cut(path):
    sets.draw(path)
    if path.name == "3.png":
        path.write_bytes(path.read_bytes()[:2000])


def image_of(array):
    def save(path):
        if path.name == "3.png":
            Image.fromarray(array).save(path)
        else:
            sets.draw(path)

    return save


def other_file(content):
    def save(path):
        sets.draw(path)
        if path.name == "3.png":
            content(path)

    return save


SIXTEEN = np.full((64, 64), 3000, np.uint16)
COLORS = np.linspace(0, 4095, 64 * 64 * 3).astype(np.uint16).reshape(64, 64, 3)
IMAGES = {
    "missing": (other_file(lambda p: p.unlink()), {"missing": 1}),
    "empty": (other_file(lambda p: p.write_bytes(b"")), {"damaged": 1}),
    "text": (other_file(lambda p: p.write_text("no image")), {"damaged": 1}),
    "cut": (cut, {"damaged": 1}),
    "16 bits": (image_of(SIXTEEN), {"depth": 1}),
    "16 bits with 8 bits in them": (image_of(SIXTEEN // 100), {}),
    "16 bits a color": (other_file(lambda p: cv2.imwrite(str(p), COLORS * 16)), {}),
    "12 of 16 bits a color": (other_file(lambda p: cv2.imwrite(str(p), COLORS)), {"depth": 1}),
    "other size": (image_of(np.zeros((60, 64, 3), np.uint8)), {"size": 1}),
    "gray": (image_of(np.zeros((64, 64), np.uint8)), {}),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image_files_that_are_not_as_expected_are_counted(tmp_path, name):
    save, expected = IMAGES[name]
    assert found(tmp_path, save=save) == expected


def test_jpeg_that_is_cut_is_damaged_and_bytes_behind_its_end_are_fine(tmp_path):
    def save(path, change):
        sets.draw(path.with_suffix(".jpg"))
        content = path.with_suffix(".jpg").read_bytes()
        path.write_bytes(change(content) if path.name == "3.png" else content)

    assert found(tmp_path / "a", save=lambda p: save(p, lambda c: c[: len(c) // 2])) == {
        "damaged": 1
    }
    assert found(tmp_path / "b", save=lambda p: save(p, lambda c: c + bytes(9000))) == {}


def test_float_image_is_refused(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.random.RandomState(0).rand(64, 64).astype(np.float32)).save(path)
    record = dict(file_name=str(path), width=64, height=64)
    assert [d.kind for d in audit_records([record], None, "toy").defects] == ["depth"]


def test_float_image_with_a_nan_behind_its_first_pixel_is_refused(tmp_path):
    pixels = np.linspace(0, 255, 64 * 64).astype(np.float32).reshape(64, 64)
    pixels[9, 9] = np.nan
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    record = dict(file_name=str(tmp_path / "a.tiff"), width=64, height=64)
    assert [d.kind for d in audit_records([record], None, "toy").defects] == ["depth"]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_orientation_is_applied_before_sizes_are_compared(tmp_path, suffix):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    right, wrong = (
        audit_records([dict(file_name=str(path), width=w, height=h)], None, "toy").defects
        for w, h in ((30, 40), (40, 30))
    )
    assert not right and [d.kind for d in wrong] == ["size"]


def test_second_audit_reads_nothing_again(tmp_path, monkeypatch):
    path = sets.write(tmp_path, "toy", "train", sets.box(lambda x, y, w, h: [x, y, 0, h], 2))
    source = CocoSource(str(path), str(tmp_path / "toy" / "train"))
    first = audit_coco(source, "toy_train")

    def read(*_):
        raise AssertionError("expected the cache, found a file that is read")

    with monkeypatch.context() as patch:
        patch.setattr("d2kd.data.audit.sets.read_coco", read)
        patch.setattr("d2kd.data.audit.images.read_header", read)
        assert audit_coco(source, "toy_train") == first
    (tmp_path / "toy" / "train" / "2.png").write_bytes(b"changed")
    assert {d.kind for d in audit_coco(source, "toy_train").defects} == {"empty", "damaged"}
    content = sets.table()
    content["images"][0]["file_name"] = "gone.png"
    path.write_text(json.dumps(content))
    assert {d.kind for d in audit_coco(source, "toy_train").defects} == {"missing", "damaged"}


def test_cache_that_is_damaged_or_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("D2KD_CACHE", str(tmp_path / "cache"))
    path = sets.write(tmp_path, "toy", "train")
    source = CocoSource(str(path), str(tmp_path / "toy" / "train"))
    audit_coco(source, "toy_train")
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"key":')
    assert not audit_coco(source, "toy_train").defects
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("D2KD_CACHE", str(tmp_path / "file" / "cache"))
    assert not audit_coco(source, "toy_train").defects


def records(**fields) -> list[dict]:
    """Three dicts of a user's own function, without files."""
    row = dict(bbox=[8, 8, 24, 24], bbox_mode=BoxMode.XYXY_ABS, category_id=0)
    return [dict(image_id=i, width=64, height=64, annotations=[dict(row, **fields)]) for i in "abc"]


def test_dicts_of_a_function_are_audited():
    audited = audit_records(records(), ["red"], "mine")
    assert not audited.defects
    assert (audited.images, audited.boxes, audited.used) == (3, 3, 1)


@pytest.mark.parametrize(
    "fields, kind",
    [
        (dict(bbox=[20, 8, 20, 24]), "empty"),  # corners of no width
        (dict(bbox=np.array([8.0, 8, np.nan, 24])), "not_finite"),
        (dict(bbox=[0.1, 0.1, 0.2, 0.2], bbox_mode=BoxMode.XYXY_REL), "mode"),
        (dict(bbox=[32, 32, 20, 10, 45], bbox_mode=BoxMode.XYWHA_ABS), "rotated"),
        (dict(bbox=[32, 32, 20, 10, 45]), "malformed"),
        (dict(category_id=1), "class_number"),
        (dict(category_id=-1), "class_number"),
        (dict(category_id="red"), "class_number"),
    ],
)
def test_mistakes_in_dicts_are_counted(fields, kind):
    kinds = {d.kind: d.count for d in audit_records(records(**fields), ["red"], "mine").defects}
    assert kinds[kind] == 3


@pytest.mark.parametrize("searched", [[12], ["1"], [-1], [0.5], [True], "1", 1])
def test_annotated_classes_that_are_no_class_numbers_are_counted(searched):
    given = [dict(x, annotated_classes=[0]) for x in records()]
    assert not audit_records(given, ["red"], "mine").defects
    given[1]["annotated_classes"] = searched
    (defect,) = audit_records(given, ["red"], "mine").defects
    assert (defect.kind, defect.count, defect.total) == ("annotated_classes", 1, 3)
    assert describe(defect, "mine", "train")[0] == REFUSED


def test_annotated_classes_count_as_used_where_the_names_are_unknown():
    given = [dict(x, annotated_classes=[0, 12]) for x in records()]
    assert audit_records(given, None, "mine").used == 13


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"annotated_classes": []},
        {"image_id": 0},
        {"file_name": "s3://bucket/a.jpg", "annotations": []},
        {"annotations": [{"bbox": [1, 1, 9, 9], "bbox_mode": 1, "category_id": 0,
                          "segmentation": {"size": [64, 64], "counts": b"abc"},
                          "keypoints": [1, 2, 2]}], "sem_seg_file_name": "a.png"},
    ],
)  # fmt: skip
def test_dicts_with_fewer_and_with_other_keys_are_fine(record):
    audited = audit_records([record], None, "mine")
    assert all(describe(d, "mine", "train")[0] == NOTE for d in audited.defects)


def test_repeated_ids_of_dicts_matter_in_evaluation_only():
    twice = audit_records([*records(), *records()], None, "mine")
    (defect,) = twice.defects
    assert not defect.concerns("train", False) and defect.concerns("test", False)
    assert describe(defect, "mine", "test")[0] == REFUSED


def test_another_mapper_may_read_images_in_its_own_way(tmp_path):
    path = sets.write(tmp_path, "toy", "train", save=image_of(SIXTEEN))
    source = CocoSource(str(path), str(tmp_path / "toy" / "train"))
    (defect,) = audit_coco(source, "toy_train").defects
    assert describe(defect, "toy_train", "train", standard=True)[0] == REFUSED
    assert describe(defect, "toy_train", "train", standard=False)[0] == WARNING


def test_set_that_is_registered_with_other_classes_is_named(tmp_path):
    sets.write(tmp_path, "toy", "train")
    with sets.registered(tmp_path / "toy"):
        MetadataCatalog.get("toy_train").thing_classes = ["green", "red", "blue"]
        with pytest.raises(ValueError, match=r"toy_train: expected the categories .* found red"):
            audit_registered("toy_train")


def test_function_that_gives_no_list_is_not_audited():
    DatasetCatalog.register("toy_stream", lambda: iter([{}]))
    try:
        assert audit_registered("toy_stream") is None
    finally:
        sets.remove("toy_stream")


def test_images_that_training_does_not_use_are_not_looked_at(tmp_path):
    def change(content):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]

    path = sets.write(tmp_path, "toy", "train", change, save=other_file(lambda p: p.unlink()))
    source = CocoSource(str(path), str(tmp_path / "toy" / "train"))
    assert [d.kind for d in audit_coco(source, "toy").defects] == ["missing"]
    assert not audit_coco(source, "toy", filter_empty=True).defects
