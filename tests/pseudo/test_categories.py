import numpy as np
import pytest

from d2kd.matching import Detections
from d2kd.pseudo.categories import CategoryMap


def found(*rows):
    """Rows of x1, y1, x2, y2, score, class."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Detections(boxes=table[:, :4], scores=table[:, 4], classes=table[:, 5].astype(np.int64))


FOUR = found(
    (0, 0, 9, 9, 0.9, 2), (20, 0, 29, 9, 0.8, 0), (40, 0, 49, 9, 0.7, 1), (60, 0, 69, 9, 0.6, 2)
)


@pytest.mark.parametrize(
    "table, classes, scores, owned",
    [
        # Some classes map to one class each, and one is dropped.
        (dict(cat="cat", dog="dog", cow=None), [1, 0], [0.8, 0.7], [True, True, False]),
        # Another class is dropped, and one is renamed.
        (dict(cat=None, dog="dog", cow="horse"), [2, 0, 2], [0.9, 0.7, 0.6], [True, False, True]),
        # Several classes become one.
        (
            dict(cat="dog", dog="dog", cow="dog"),
            [0] * 4,
            [0.9, 0.8, 0.7, 0.6],
            [True, False, False],
        ),
    ],
)
def test_table_maps_classes(table, classes, scores, owned):
    categories = CategoryMap(["dog", "cat", "horse"], table, ["cat", "dog", "cow"])
    got = categories.apply(FOUR)
    assert got.classes.tolist() == classes and got.classes.dtype == np.int64
    np.testing.assert_array_equal(got.scores, np.float32(scores))
    np.testing.assert_array_equal(got.boxes, FOUR.boxes[np.isin(FOUR.scores, got.scores)])
    assert categories.owned.tolist() == owned


def test_equal_names_in_any_order_need_no_table():
    got = CategoryMap(["a", "b", "c"], None, ["c", "a", "b"]).apply(FOUR)
    assert got.classes.tolist() == [1, 2, 0, 1]


def test_no_boxes():
    got = CategoryMap(["a"], None, ["a"]).apply(found())
    assert (got.boxes.shape, got.scores.shape, got.classes.shape) == ((0, 4), (0,), (0,))


def test_boxes_of_one_object_are_merged_if_their_classes_map_to_one():
    boxes = found(
        (0, 0, 10, 10, 0.9, 0),  # a car
        (0, 0, 10, 9, 0.8, 1),  # the same object, found as a van
        (0, 0, 10, 9, 0.7, 2),  # both trees are kept: the teacher's NMS has seen them
        (0, 0, 10, 9, 0.6, 2),
        (0, 0, 10, 5, 0.5, 1),  # overlaps by half only: another object
    )
    table = dict(car="vehicle", van="vehicle", tree="tree")
    got = CategoryMap(["tree", "vehicle"], table, ["car", "van", "tree"]).apply(boxes)
    assert got.scores.tolist() == np.float32([0.9, 0.7, 0.6, 0.5]).tolist()
    assert got.classes.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "table, named",
    [
        (dict(cat="cat"), r"missing are \['dog', 'cow'\]"),
        (dict(cat="cat", dog=None, cow=None, caw=None), r"found \['caw'\]"),
        (dict(cat="Cat", dog="dog", cow=None), r"found \['Cat'\]"),
        (dict(cat=None, dog=None, cow=None), "drops every class"),
    ],
)
def test_wrong_table_is_refused(table, named):
    with pytest.raises(ValueError, match=named):
        CategoryMap(["dog", "cat"], table, ["cat", "dog", "cow"])


def test_repeated_names_are_refused():
    with pytest.raises(ValueError, match=r"teacher classes.*\['b'\]"):
        CategoryMap(["a"], None, ["a", "b", "b"])


def test_class_index_that_the_teacher_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"below 2.*found 0 to 2"):
        CategoryMap(["a", "b"], None, ["a", "b"]).apply(FOUR)


def test_error_without_a_table_contains_one_to_complete():
    student, teacher = ["person", "motorbike", "TV"], ["person", "motorcycle", "tv", "zebra"]
    with pytest.raises(ValueError, match="expected a table") as error:
        CategoryMap(student, None, teacher)
    text = str(error.value)
    text = text[text.index("{") :]
    assert "'motorcycle': None,  # nearest: 'motorbike'" in text
    assert "'tv': None,  # nearest: 'TV'" in text
    pasted = eval(text)  # only equal names are filled in
    assert pasted == {"person": "person", "motorcycle": None, "tv": None, "zebra": None}
    assert CategoryMap(student, pasted, teacher).owned.tolist() == [True, False, False]
