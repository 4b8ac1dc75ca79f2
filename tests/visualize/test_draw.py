"""Drawings: which colors and places things have."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from d2kd import visualize
from d2kd.visualize import PseudoLabels, draw
from tests.test_matching import TWO, found

GRAY = np.zeros((40, 40, 3), dtype=np.uint8)


@pytest.fixture
def axes():
    figure = Figure(figsize=(3, 3), dpi=100)
    FigureCanvasAgg(figure)
    return figure.add_axes((0, 0, 1, 1))


def test_what_is_drawn(axes):
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    boxes = found((0, 0, 10, 10, 3, 0.9), (10, 20, 30, 35, 1, 0.8))
    visualize.draw_detections(axes, image, boxes, TWO, list("0123456789"))
    frames = {tuple(p.get_bbox().extents): p for p in axes.patches if not p.get_fill()}
    colors = {box: p.get_edgecolor() for box, p in frames.items()}
    assert colors == {
        (0, 0, 10, 10): to_rgba(visualize.CORRECT),
        (10, 20, 30, 35): to_rgba(visualize.WRONG),
        (20, 0, 30, 10): to_rgba(visualize.MISSED),
    }
    solid = {box for box, p in frames.items() if p.get_linestyle() in ("-", "solid")}
    assert solid == {(0, 0, 10, 10), (10, 20, 30, 35)}
    assert {t.get_text() for t in axes.texts} == {"3 90%", "1 80%", "7?"}


def test_labels_do_not_cover_each_other(axes):
    axes.set(xlim=(0, 128), ylim=(128, 0))
    labels = draw._Labels(axes)
    for shift in range(4):
        labels.put(np.array([40, 40 + shift, 70, 80 + shift]), "3 90%", "white")
    taken = labels.taken
    shared = [draw._intersection(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert max(shared) == 0
    assert all(min(box) >= 0 and max(box) <= 128 for box in taken)


def test_flat_heat_is_no_error(axes):
    visualize.draw_heat(axes, np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 8)))


def frames(axes) -> list[tuple]:
    return [tuple(p.get_bbox().extents) for p in axes.patches if not p.get_fill()]


def test_pseudo_labels_have_scores_and_regions_to_ignore_are_hatched(axes):
    labels = PseudoLabels(found((0, 0, 10, 10, 3, 0.9)), np.array([[20.0, 5, 30, 15]]))
    visualize.draw_labels(axes, GRAY, labels, list("0123456789"))
    hatched = [p for p in axes.patches if p.get_hatch()]
    assert [tuple(p.get_bbox().extents) for p in hatched] == [(20, 5, 30, 15)]
    (box,) = [p for p in axes.patches if not p.get_fill() and not p.get_hatch()]
    assert tuple(box.get_bbox().extents) == (0, 0, 10, 10)
    assert box.get_edgecolor() == to_rgba(visualize.LABEL)
    assert [t.get_text() for t in axes.texts] == ["3 90%"]


def test_heats_of_one_scale_can_be_compared(axes):
    half = np.full((8, 8), 0.5)
    visualize.draw_heat(axes, GRAY[:8, :8], half, limits=(0.0, 1.0))
    visualize.draw_heat(axes, GRAY[:8, :8], half, limits=(0.0, 0.5))
    first, second = (image.get_array() for image in axes.images)
    assert first.mean() < second.mean()
    visualize.draw_heat(axes, GRAY[:8, :8], 2 * half, limits=(0.0, 1.0))
    np.testing.assert_array_equal(axes.images[2].get_array(), second)


def test_each_level_has_its_own_picture(axes):
    heats = {f"p{i}": np.eye(40) for i in range(3, 8)}
    visualize.draw_levels(axes, GRAY, heats, dict.fromkeys(heats, 1.0))
    assert [a.texts[0].get_text() for a in axes.child_axes] == ["p3", "p4", "p5", "p6", "p7"]
    places = [a.get_position().extents for a in axes.child_axes]
    for i, a in enumerate(places):
        assert a.min() >= -1e-9 and a.max() <= 1 + 1e-9
        assert all(draw._intersection(a, b) == 0 for b in places[:i])


def test_a_gaussian_is_an_ellipse_along_its_axes(axes):
    # 3 px along (1, 1), 1 px across.
    turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    covariance = turn @ np.diag([9.0, 1.0]) @ turn.T
    gaussian = (np.array([20.0, 10.0]), covariance)
    points, weights = np.array([[20.0, 10.0], [22.0, 12.0]]), np.array([1.0, 0.5])
    box = np.array([[10.0, 0, 30, 20]])
    visualize.draw_gaussians(axes, GRAY, box, points, weights, [gaussian])
    one, two = [p for p in axes.patches if isinstance(p, Ellipse)]
    assert one.center == (20, 10) and one.angle % 180 == pytest.approx(45)
    assert (one.width, one.height) == pytest.approx((6, 2))
    assert (two.width, two.height) == pytest.approx((12, 4))
    (dots,) = axes.collections
    np.testing.assert_array_equal(dots.get_offsets(), points[::-1])  # the largest on top
    np.testing.assert_array_equal(dots.get_array(), weights[::-1])


def test_ranks_are_lines_with_the_colors_of_the_candidates(axes):
    teacher, student = np.array([1, 2, 3]), np.array([3, 2, 1])
    ranks = {"student": student, "teacher": teacher}
    visualize.draw_ranks(axes, ranks, "teacher", most=2)
    assert [line.get_ydata().tolist() for line in axes.lines] == [[3, 1], [2, 2]]
    texts = {t.get_text() for t in axes.texts}
    assert {"student", "teacher", "correlation -1.00", "1", "3"} == texts
    colors = [tuple(line.get_color()) for line in axes.lines]
    points = np.array([[5.0, 5], [6, 6], [7, 7]])
    visualize.draw_candidates(axes, GRAY, np.array([0.0, 0, 9, 9]), points, teacher)
    (dots,) = axes.collections
    assert dots.get_offsets().tolist() == points[::-1].tolist()
    np.testing.assert_allclose(dots.get_facecolors()[::-1][:2], colors)
    assert frames(axes) == [(0, 0, 9, 9)]
