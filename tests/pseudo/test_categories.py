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
        # Disjoint from the other classes of the student.
        (dict(cat="cat", dog="dog", cow=None), [1, 0], [0.8, 0.7], [True, True, False]),
        # Overlapping: one class is dropped, one is new.
        (dict(cat=None, dog="dog", cow="horse"), [2, 0, 2], [0.9, 0.7, 0.6], [True, False, True]),
        # Several become one.
        (
            dict(cat="dog", dog="dog", cow="dog"),
            [0] * 4,
            [0.9, 0.8, 0.7, 0.6],
            [True, False, False],
        ),
    ],
)
def test_a_table_says_which_class_is_which(table, classes, scores, owned):
    categories = CategoryMap(["dog", "cat", "horse"], table, ["cat", "dog", "cow"])
    got = categories.apply(FOUR)
    assert got.classes.tolist() == classes and got.classes.dtype == np.int64
    np.testing.assert_array_equal(got.scores, np.float32(scores))
    np.testing.assert_array_equal(got.boxes, FOUR.boxes[np.isin(FOUR.scores, got.scores)])
    assert categories.owned.tolist() == owned


def test_equal_names_need_no_table_whatever_their_order():
    got = CategoryMap(["a", "b", "c"], None, ["c", "a", "b"]).apply(FOUR)
    assert got.classes.tolist() == [1, 2, 0, 1]


def test_no_boxes():
    got = CategoryMap(["a"], None, ["a"]).apply(found())
    assert (got.boxes.shape, got.scores.shape, got.classes.shape) == ((0, 4), (0,), (0,))


def test_one_object_by_two_names_becomes_one_box_where_the_names_become_one():
    boxes = found(
        (0, 0, 10, 10, 0.9, 0),  # a car
        (0, 0, 10, 9, 0.8, 1),  # called a van too
        (0, 0, 10, 9, 0.7, 2),  # a tree remains: one class, one NMS
        (0, 0, 10, 9, 0.6, 2),
        (0, 0, 10, 5, 0.5, 1),  # half of it is another one
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
def test_a_wrong_table_is_refused(table, named):
    with pytest.raises(ValueError, match=named):
        CategoryMap(["dog", "cat"], table, ["cat", "dog", "cow"])


def test_names_that_stand_twice_are_refused():
    with pytest.raises(ValueError, match=r"teacher classes.*\['b'\]"):
        CategoryMap(["a"], None, ["a", "b", "b"])


def test_an_index_that_the_teacher_lacks_is_refused():
    with pytest.raises(ValueError, match=r"below 2.*found 0 to 2"):
        CategoryMap(["a", "b"], None, ["a", "b"]).apply(FOUR)


def test_without_a_table_the_error_holds_one_that_only_lacks_the_decisions():
    student, teacher = ["person", "motorbike", "TV"], ["person", "motorcycle", "tv", "zebra"]
    with pytest.raises(ValueError, match="no table") as error:
        CategoryMap(student, None, teacher)
    text = str(error.value)
    text = text[text.index("{") :]
    assert "'motorcycle': None,  # nearest: 'motorbike'" in text
    assert "'tv': None,  # nearest: 'TV'" in text
    pasted = eval(text)  # nothing but equal names is decided
    assert pasted == {"person": "person", "motorcycle": None, "tv": None, "zebra": None}
    assert CategoryMap(student, pasted, teacher).owned.tolist() == [True, False, False]
