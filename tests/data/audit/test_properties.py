"""Random annotations: valid ones pass, and each single mistake is found or does no harm.

"Harm" is judged by what a student would be taught: Detectron2's own loader and mapper read the set
before and after the mistake, and their boxes are compared.
"""

import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2kd.data.audit import NOTE, CocoSource, audit_coco, describe, mend_coco
from tests.data.audit import sets

SIDE = sets.SIZE
FILE = "image.png"

numbers = st.floats(0, SIDE, allow_nan=False, width=32)


@st.composite
def boxes(draw):
    """A box with sides of at least a pixel, inside of the image, in tenths of a pixel."""
    x, y = (draw(st.integers(0, 10 * SIDE - 20)) for _ in "xy")
    w, h = (draw(st.integers(10, 10 * SIDE - start)) for start in (x, y))
    return [x / 10, y / 10, w / 10, h / 10]


@st.composite
def tables(draw):
    """A valid table: 1 to 4 images of one file, up to 5 boxes each, any ids, names and crowds."""
    images = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=4, unique=True))
    count = draw(st.integers(1, 4))
    categories = draw(
        st.lists(st.integers(0, 500), min_size=count, max_size=count, unique=True).map(sorted)
    )
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=count, max_size=count))
    rows = []
    for image in images:
        for box in draw(st.lists(boxes(), min_size=image == images[0], max_size=5)):
            rows.append(
                dict(
                    image_id=image,
                    bbox=box,
                    area=box[2] * box[3],
                    category_id=draw(st.sampled_from(categories)),
                    iscrowd=draw(st.sampled_from([0, 0, 0, 1])),
                )
            )
    ids = draw(st.lists(st.integers(1, 2**50), min_size=len(rows), max_size=len(rows), unique=True))
    return dict(
        info={},
        images=[dict(id=i, file_name=FILE, width=SIDE, height=SIDE) for i in images],
        annotations=[dict(id=i, **row) for i, row in zip(ids, rows, strict=True)],
        categories=[dict(id=i, name=n) for i, n in zip(categories, names, strict=True)],
    )


def change_box(function):
    def mistake(table, row):
        row["bbox"] = function(*row["bbox"])

    return mistake


def set_field(key, value):
    def mistake(table, row):
        row[key] = value(table, row)

    return mistake


def remove_field(key):
    return lambda table, row: row.pop(key)


def share_image_id(table, row):
    if len(table["images"]) > 1:
        table["images"][1]["id"] = table["images"][0]["id"]
        table["images"][1]["file_name"] = f"./{FILE}"


MISTAKES = {
    "nan": change_box(lambda x, y, w, h: [x, math.nan, w, h]),
    "infinite": change_box(lambda x, y, w, h: [x, y, math.inf, h]),
    "no width": change_box(lambda x, y, w, h: [x, y, 0, h]),
    "negative height": change_box(lambda x, y, w, h: [x, y, w, -h]),
    "outside": change_box(lambda x, y, w, h: [x + 2 * SIDE, y, w, h]),
    "beyond": change_box(lambda x, y, w, h: [x, y, w + SIDE, h]),
    "left": change_box(lambda x, y, w, h: [-w / 2, y, w, h]),
    "relative": change_box(lambda x, y, w, h: [v / SIDE for v in (x, y, w, h)]),
    "huge": change_box(lambda x, y, w, h: [x * 1e30, y, w, h]),
    "three numbers": change_box(lambda x, y, w, h: [x, y, w]),
    "no numbers": change_box(lambda x, y, w, h: []),
    "text": change_box(lambda x, y, w, h: [str(x), y, w, h]),
    "null": change_box(lambda x, y, w, h: None),
    "unknown category": set_field("category_id", lambda t, r: 501),
    "category as text": set_field("category_id", lambda t, r: str(r["category_id"])),
    "unknown image": set_field("image_id", lambda t, r: -1),
    "image as text": set_field("image_id", lambda t, r: str(r["image_id"])),
    "image as list": set_field("image_id", lambda t, r: [r["image_id"]]),
    "id 0": set_field("id", lambda t, r: 0),
    "id of another": set_field("id", lambda t, r: t["annotations"][-1]["id"]),
    "id as text": set_field("id", lambda t, r: "a"),
    "ignore": set_field("ignore", lambda t, r: 1),
    "no box": remove_field("bbox"),
    "no id": remove_field("id"),
    "no area": remove_field("area"),
    "no iscrowd": remove_field("iscrowd"),
    "no category": remove_field("category_id"),
    "no image": remove_field("image_id"),
    "image id of another": share_image_id,
    "no width of the image": lambda table, row: table["images"][0].pop("width"),
    "size of the image": lambda table, row: table["images"][0].update(width=SIDE + 1),
    "image without entries": lambda table, row: table["images"].append({}),
    "image as a number": lambda table, row: table["images"].append(5),
    "image with a list as id": lambda table, row: table["images"][0].update(id=[1]),
    "annotation as a list": lambda table, row: table["annotations"].append([]),
    "category as a number": lambda table, row: table["categories"].append(5),
    "category id of another": lambda table, row: table["categories"].append(
        dict(id=table["categories"][0]["id"], name="other")
    ),
}

MAPPER = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")


def taught(path, root) -> list[list]:
    """Classes and boxes that a student would be taught, image by image."""
    records = load_coco_json(path, root, None)
    result = []
    for record in records:
        found = MAPPER(record)["instances"]
        rows = zip(found.gt_classes.tolist(), found.gt_boxes.tensor.tolist(), strict=True)
        result.append(sorted([c, *np.round(box, 2).tolist()] for c, box in rows))
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the one image of all tables."""
    folder = tmp_path_factory.mktemp("random")
    sets.draw(folder / FILE)
    return folder


def audit(place, table):
    path = place / "labels.json"
    path.write_text(json.dumps(table))
    source = CocoSource(str(path), str(place))
    audited = audit_coco(source, "random")
    levels = {describe(d, "random", "train")[0] for d in audited.defects}
    return source, audited, levels


def check_valid(place, table):
    _, audited, levels = audit(place, table)
    assert levels <= {NOTE}, audited.defects
    assert not audited.breaks_loading


def check_mistake(place, table, name, index):
    before = taught_or_none(place, table)
    row = table["annotations"][index % len(table["annotations"])]
    MISTAKES[name](table, row)
    source, audited, levels = audit(place, table)
    if audited.defects:  # it is found: the user reads its kind, its number and an example
        for defect in audited.defects:
            assert 0 < defect.count <= max(defect.total, 1) and defect.example
        if "refused" in levels:
            return
    path = mend_coco(*vars(source).values()) if audited.breaks_loading else source.path
    after = taught(path, str(place))  # what is not refused can be loaded
    if not audited.defects:
        assert after == before


def taught_or_none(place, table):
    path = place / "before.json"
    path.write_text(json.dumps(table))
    return taught(str(path), str(place))


QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=500, derandomize=False)
index = st.integers(0, 20)
mistake = st.sampled_from(sorted(MISTAKES))


@QUICK
@given(table=tables())
def test_valid_annotations_pass(place, table):
    check_valid(place, table)


@QUICK
@given(table=tables(), name=mistake, index=index)
def test_each_mistake_is_found_or_does_no_harm(place, table, name, index):
    check_mistake(place, table, name, index)


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_each_kind_of_mistake_in_one_table(place, name):
    check_mistake(place, sets_table(), name, 1)


def sets_table() -> dict:
    content = sets.table(images=3)
    for image in content["images"]:
        image["file_name"] = FILE
    return content


@pytest.mark.slow
@LONG
@given(table=tables())
def test_valid_annotations_pass_500(place, table):
    check_valid(place, table)


@pytest.mark.slow
@LONG
@given(table=tables(), name=mistake, index=index)
def test_each_mistake_is_found_or_does_no_harm_500(place, table, name, index):
    check_mistake(place, table, name, index)
