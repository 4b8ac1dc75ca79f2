import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from d2kd import visualize
from d2kd.visualize import Column, Detections, Truth, View, match

from . import toys


def found(*rows):
    """Rows of x1, y1, x2, y2, class, score."""
    table = np.array(rows, dtype=float).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].astype(int), table[:, 5])


def truth(*rows):
    """Rows of x1, y1, x2, y2, class."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    return Truth(table[:, :4], table[:, 4].astype(int))


TWO = truth((0, 0, 10, 10, 3), (20, 0, 30, 10, 7))


def test_correct_wrong_class_and_missed():
    result = match(found((0, 0, 10, 10, 3, 0.9), (20, 0, 30, 10, 1, 0.8)), TWO)
    assert result.correct.tolist() == [True, False]
    assert result.found.tolist() == [True, False]
    assert result.errors == 2


def test_of_two_on_one_object_the_surer_counts():
    result = match(found((0, 0, 10, 9, 3, 0.5), (0, 0, 10, 8, 3, 0.6)), TWO)
    assert result.correct.tolist() == [False, True]
    assert result.errors == 2  # the duplicate, and the object that nobody found


@pytest.mark.parametrize(
    "right, correct",
    [(15, True), (14.9, True), (5, True), (4.9, False), (20, True), (20.1, False)],
)
def test_overlap_counts_from_one_half(right, correct):
    # IoU with a box of width 10: right / 10 where narrower, 10 / right where wider.
    result = match(found((0, 0, right, 10, 3, 0.9)), truth((0, 0, 10, 10, 3)))
    assert result.correct.tolist() == [correct]


def test_each_takes_the_object_that_it_overlaps_most():
    close = truth((0, 0, 10, 10, 3), (2, 0, 12, 10, 3))
    result = match(found((2, 0, 12, 10, 3, 0.9), (0, 0, 10, 10, 3, 0.8)), close)
    assert result.correct.all() and result.found.all()


def test_nothing_found_and_nothing_there():
    assert match(found(), TWO).errors == 2
    assert match(found((0, 0, 9, 9, 3, 0.9)), truth()).errors == 1
    assert match(found(), truth()).errors == 0


def test_from_detectron2():
    instances = Instances((20, 40))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 9.0, 9.0]]))
    instances.pred_classes = torch.tensor([7, 1])
    instances.scores = torch.tensor([0.75, 0.25])
    got = Detections.of(instances).above(0.5)
    assert got.boxes.tolist() == [[1, 2, 3, 4]]
    assert (got.classes.tolist(), got.scores.tolist()) == ([7], [0.75])

    box = {"bbox": [10, 20, 5, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 4}
    got = Truth.of({"annotations": [box, {**box, "iscrowd": 1}]})
    assert got.boxes.tolist() == [[10, 20, 15, 26]]
    assert got.classes.tolist() == [4]


def test_the_surest_of_a_place():
    # The second overlaps the first by 9/10, the third by 1/3; the fourth is elsewhere.
    boxes = found(
        (0, 0, 10, 10, 3, 0.5),
        (0, 0, 10, 9, 4, 0.6),
        (5, 0, 15, 10, 3, 0.4),
        (50, 0, 60, 9, 3, 0.9),
    )
    assert boxes.surest().scores.tolist() == [0.6, 0.4, 0.9]
    assert found().surest().boxes.shape == (0, 4)


def test_best_threshold():
    # From the surest on: right, right, wrong, wrong. F1 of 2 objects: 2/3, 1, 4/5, 2/3.
    first = found((0, 0, 10, 10, 3, 0.9), (20, 0, 30, 10, 7, 0.6), (50, 0, 60, 10, 7, 0.5))
    second = found((0, 0, 10, 10, 3, 0.4))
    assert visualize.best_threshold([first, second], [TWO, truth()]) == 0.6
    assert visualize.best_threshold([found()], [TWO]) == 0.5


def test_choice_of_images():
    good = found((0, 0, 10, 10, 3, 0.9), (20, 0, 30, 10, 7, 0.8))  # no error
    half = found((0, 0, 10, 10, 3, 0.9))  # one
    none = found()  # two
    truths = dict.fromkeys("abcde", TWO) | {"f": truth((0, 0, 10, 10, 3))}
    alone = dict(a=good, b=none, c=good, d=none, e=half, f=none)
    distilled = dict(a=good, b=good, c=none, d=none, e=half, f=none)
    chosen, rule = visualize.choose_images(truths, alone, distilled, differ=2, fail=1, least=2)
    # b and c differ most, one either way; of the rest d is the worst; f has too few objects.
    assert chosen == ["b", "c", "d"]
    assert "at least 2 objects" in rule and "whichever is better" in rule


def test_cells_lie_on_their_pixels():
    cells = torch.zeros(4, 5)
    cells[1, 3] = 1
    squares = visualize.upsample(cells, 4, (15, 18), smooth=False)
    assert squares.shape == (15, 18)  # what is beyond the image is padding
    expected = np.zeros((15, 18))
    expected[4:8, 12:16] = 1
    np.testing.assert_array_equal(squares, expected)

    smooth = visualize.upsample(cells, 4, (16, 20))
    peak = np.argwhere(smooth == smooth.max())
    assert peak.min(0).tolist() == [5, 13] and peak.max(0).tolist() == [6, 14]  # the cell's middle
    assert smooth[1, 13] == 0 and smooth[2, 13] > 0  # it fades over one cell


def test_attention_of_a_detector():
    model = toys.retinanet()
    image = toys.image(size=(48, 64))
    heat = visualize.spatial_attention(model, image, level="p3")
    assert heat.shape == (48, 64)
    assert model.training
    model.eval()
    with torch.no_grad():
        pixels = model.preprocess_image([image]).tensor
        magnitude = model.backbone(pixels)["p3"].abs().mean(1)[0]
    cells = torch.softmax(magnitude.flatten() / 0.5, 0).view_as(magnitude) * magnitude.numel()
    # Between cells (1, 2) and (2, 3) the mean of the four.
    np.testing.assert_allclose(heat[15:17, 23:25].mean(), cells[1:3, 2:4].mean().item(), rtol=1e-5)


def test_key_regions():
    regions = visualize.key_regions(
        toys.retinanet(), toys.image(size=(48, 64)), truth((8, 8, 15, 15, 0)), level="p3"
    )
    # Stride 8: cells 1 to 2 either way, both ends inclusive, as FGD has it: 4 cells.
    expected = np.zeros((48, 64))
    expected[8:24, 8:24] = 1 / 4
    np.testing.assert_allclose(regions, expected)


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
    from matplotlib.colors import to_rgba

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
    labels = visualize._Labels(axes)
    for shift in range(4):
        labels.put(np.array([40, 40 + shift, 70, 80 + shift]), "3 90%", "white")
    taken = labels.taken
    shared = [visualize._shared(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert max(shared) == 0
    assert all(min(box) >= 0 and max(box) <= 128 for box in taken)


def test_flat_heat_is_no_error(axes):
    visualize.draw_heat(axes, np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 8)))


def test_sheet(tmp_path):
    image = toys.image(size=(64, 64))
    views = [View(name, "AP 1", {5: found()}) for name in ("one", "two")]
    columns = visualize.distillation_columns(
        views, toys.retinanet(), {5: image}, {5: truth((8, 8, 40, 40, 1))}, "abc"
    )
    assert [len(c.drawings) for c in columns] == [1] * 4
    assert isinstance(columns[0], Column)
    path = tmp_path / "sheet.png"
    visualize.compose_sheet(path, columns, title="t", subtitle="s", caption="word " * 99, width=600)
    assert Image.open(path).width == 600
