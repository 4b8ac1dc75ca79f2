import contextlib
import io
import json
import os

import numpy as np
import PIL.Image
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2kd.data.manifest import Image
from d2kd.pseudo.fuse import Labels
from d2kd.pseudo.quality.assess import assess
from d2kd.pseudo.quality.report import write_report
from d2kd.pseudo.quality.truth import read_truth

CLASSES = ["cat", "dog", "owl"]
TEACHERS = ["big", "other"]


def labels(*rows, teachers=None):
    """Rows of x1, y1, x2, y2, class, score, and 1 for a region to ignore."""
    table = np.array([(*r, 0)[:7] for r in rows], dtype=np.float32).reshape(-1, 7)
    by = np.ones((len(table), 2), bool) if teachers is None else np.array(teachers, bool)
    return Labels(table[:, :4], table[:, 5], table[:, 4].astype(int), by.sum(1), by,
                  table[:, 6] > 0, table[:, 5])  # fmt: skip


def truth(folder, rows, classes=CLASSES, images=None, ours=CLASSES):
    """True boxes, read from a COCO file.

    The rows are image, x1, y1, x2, y2, category from 1, and 1 for a crowd.
    """
    images = images if images is not None else sorted({row[0] for row in rows})
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in images],
        "categories": [{"id": 3 * k, "name": name} for k, name in enumerate(classes, start=1)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 3 * k, "bbox": [x, y, x2 - x, y2 - y],
             "area": (x2 - x) * (y2 - y), "iscrowd": int(any(crowd))}
            for n, (i, x, y, x2, y2, k, *crowd) in enumerate(rows, start=1)
        ],
    }  # fmt: skip
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return read_truth(path, ours)


def images(*ids):
    return [Image(i, f"/data/{i}.png", 100, 100) for i in ids]


OBJECTS = [(1, 0, 0, 10, 10, 1), (1, 20, 0, 40, 20, 2), (1, 50, 50, 90, 90, 1),
           (1, 0, 60, 40, 100, 1, 1)]  # fmt: skip
FOUND = labels(
    (0, 0, 10, 10, 0, 0.9),  # correct
    (0, 0, 10, 8, 0, 0.8),  # a duplicate
    (20, 0, 40, 20, 0, 0.7),  # wrong class: it is a dog
    (20, 0, 40, 8, 1, 0.6),  # IoU 0.4
    (70, 0, 80, 10, 2, 0.6),  # nothing there
    (5, 65, 15, 75, 0, 0.6),  # in a crowd: not counted
    (50, 50, 90, 90, 0, 0.4, 1),  # would be correct as a box
)


def test_worked_by_hand(tmp_path):
    file = truth(tmp_path, OBJECTS)
    found = assess(images(1), {1: FOUND}, CLASSES, TEACHERS, truth=file)["truth"]
    high, low = found["high"], found["low"]
    assert (high["labels"], high["objects"], high["missed"]) == (5, 3, 2)
    assert (high["precision"], high["recall"]) == (1 / 5, 1 / 3)
    assert (low["precision"], low["recall"]) == (2 / 6, 2 / 3)
    errors = {"class": 1, "localization": 1, "background": 1, "duplicate": 1}
    assert high["errors"] == low["errors"] == errors
    assert high["classes"] == {
        "cat": {"precision": 1 / 3, "recall": 1 / 2},
        "dog": {"precision": 0, "recall": 0},
        "owl": {"precision": 0, "recall": None},
    }
    # Objects below 32² pixels: a cat and the dog. All labels that count are small. The other cat is
    # medium.
    assert high["sizes"]["small"] == {"precision": 1 / 5, "recall": 1 / 2}
    assert high["sizes"]["medium"] == {"precision": None, "recall": 0}
    assert low["sizes"]["medium"] == {"precision": 1, "recall": 1}
    assert low["sizes"]["large"] == {"precision": None, "recall": None}
    # For cats, one of two objects is found at precision 1, which is 51 of 101 points of recall. The
    # dog is not found.
    assert found["AP50"] == pytest.approx(100 * 51 / 101 / 2)
    assert found["classes"]["owl"] is None


def test_class_error_comes_before_localization_error(tmp_path):
    # IoU 2/3 with a dog, 1/9 with a cat (0, 0, 10, 10).
    file = truth(tmp_path, [(1, 0, 0, 10, 10, 1), (1, 10, 0, 20, 10, 2)])
    found = {1: labels((8, 0, 18, 10, 0, 0.9))}
    errors = assess(images(1), found, CLASSES, TEACHERS, truth=file)["truth"]["high"]["errors"]
    assert errors == {"class": 1, "localization": 0, "background": 0, "duplicate": 0}


def test_overlap_of_correct_labels(tmp_path):
    file = truth(tmp_path, [(1, 0, 0, 10, 10, 1), (1, 0, 50, 10, 60, 1)])
    found = {1: labels((0, 0, 10, 8, 0, 0.9), (0, 50, 10, 56, 0, 0.8), (0, 50, 10, 54, 0, 0.7))}
    judged = assess(images(1), found, CLASSES, TEACHERS, truth=file)["truth"]["high"]
    assert judged["mean_iou"] == pytest.approx((0.8 + 0.6) / 2)  # the third is wrong
    assert judged["errors"]["localization"] == 1


def test_edges_of_correct_labels(tmp_path):
    # Objects of 10 x 20 pixels. The left edge of one label is 1 pixel too far right, the bottom of
    # another one is 4 pixels too low. The third is wrong.
    rows = [(1, 0, 0, 10, 20, 1), (1, 50, 0, 60, 20, 1), (1, 0, 50, 10, 70, 2)]
    found = {1: labels((1, 0, 10, 20, 0, 0.9), (50, 0, 60, 24, 0, 0.8), (9, 50, 10, 70, 1, 0.7))}
    judged = assess(images(1), found, CLASSES, TEACHERS, truth=truth(tmp_path, rows))["truth"]
    edges = judged["high"]["edges"]
    means, stds = ([edges[name][k] for name in edges] for k in ("mean", "std"))
    assert list(edges) == ["left", "top", "right", "bottom"]
    assert means == pytest.approx([0.05, 0, 0, 0.1]) and stds == pytest.approx([0.05, 0, 0, 0.1])


@pytest.mark.parametrize("count, shift, warns", [(30, 2, True), (30, 0.5, False), (10, 2, False)])
def test_labels_that_are_all_narrower_are_warned_of(tmp_path, count, shift, warns):
    rows = [(i, 10, 10, 30, 20, 1) for i in range(1, count + 1)]
    found = {i: labels((10 + shift, 10, 30, 20, 0, 0.9)) for i in range(1, count + 1)}
    file = truth(tmp_path, rows)
    result = assess(images(*found), found, CLASSES, TEACHERS, truth=file, min_boxes=0)
    if warns:
        (text,) = result["warnings"]
        assert "left edge 0.10 of the width too far right. The teacher" in text
    else:
        assert result["warnings"] == []


def test_labels_that_scatter_are_not_warned_of(tmp_path):
    shifts = [4.5, -4.5, 4.5, -4.5, 4.5] * 6  # mean 0.9 of 15 pixels
    rows = [(i, 20, 10, 35, 20, 1) for i in range(1, 31)]
    found = {i: labels((20 + x, 10, 35, 20, 0, 0.9)) for i, x in enumerate(shifts, start=1)}
    file = truth(tmp_path, rows)
    result = assess(images(*found), found, CLASSES, TEACHERS, truth=file, min_boxes=0)
    assert result["truth"]["high"]["edges"]["left"]["mean"] == pytest.approx(0.06)
    assert result["warnings"] == []


def test_perfect_labels(tmp_path):
    rows = [row for row in OBJECTS if len(row) == 6]
    found = {1: labels(*((*r[1:5], r[5] - 1, 0.9 - 0.1 * n) for n, r in enumerate(rows)))}
    file = truth(tmp_path, [*rows, (2, 0, 0, 9, 9, 3)], images=[1, 2])
    found[2] = labels((0, 0, 9, 9, 2, 0.5))
    result = assess(images(1, 2), found, CLASSES, TEACHERS, truth=file)
    judged = result["truth"]
    assert judged["AP"] == judged["AP50"] == judged["AP75"] == pytest.approx(100)
    assert (
        judged["high"]["precision"] == judged["high"]["recall"] == judged["high"]["mean_iou"] == 1
    )
    assert result["reference"]["ratio"] == 1 and result["reference"]["class_divergence"] == 0


def test_nothing_found(tmp_path):
    file = truth(tmp_path, OBJECTS)
    judged = assess(images(1), {1: labels()}, CLASSES, TEACHERS, truth=file)["truth"]
    assert judged["AP"] == 0 and judged["high"]["recall"] == 0
    assert judged["high"]["precision"] is None and judged["high"]["mean_iou"] is None


def random_set(folder, count=12):
    rng = np.random.RandomState(0)
    rows, found = [], {}
    for i in range(1, count + 1):
        corners = rng.randint(0, 50, (6, 2))
        boxes = np.concatenate([corners, corners + rng.randint(5, 50, (6, 2))], 1)
        index = rng.randint(0, 3, 6)
        rows += [(i, *b, k + 1, n == 5) for n, (b, k) in enumerate(zip(boxes.tolist(), index))]  # noqa: B905
        noise = np.repeat(boxes, 2, 0) + rng.randn(12, 4) * 2
        wrong = rng.rand(12) < 0.2
        kinds = np.where(wrong, rng.randint(0, 3, 12), np.repeat(index, 2))
        found[i] = labels(*np.column_stack([noise, kinds, rng.rand(12)]).tolist())
    return truth(folder, [tuple(map(int, row)) for row in rows]), found


def pycocotools(file, found):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file.source)
        rows = [
            {"image_id": i, "category_id": 3 * (int(k) + 1), "score": float(s),
             "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]}
            for i, x in found.items()
            for b, k, s in zip(x.boxes.astype(float), x.classes, x.scores, strict=True)
        ]  # fmt: skip
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_figures_equal_pycocotools(tmp_path):
    file, found = random_set(tmp_path)
    judged = assess(images(*found), found, CLASSES, TEACHERS, truth=file)["truth"]
    reference = pycocotools(file, found)
    names = ["AP", "AP50", "AP75", "APs", "APm"]
    assert 20 < judged["AP"] < 80
    np.testing.assert_allclose([judged[n] for n in names], 100 * reference.stats[:5], rtol=1e-9)
    for k, name in enumerate(CLASSES):
        precision = reference.eval["precision"][:, :, k, 0, 2]
        assert judged["classes"][name] == pytest.approx(100 * precision.mean())
        # All areas come first, 12 images of each of the 4 kinds; IoU 0.5 comes first.
        parts = [e for e in reference.evalImgs[k * 48 : k * 48 + 12] if e]
        counted = np.concatenate([~e["dtIgnore"][0].astype(bool) for e in parts])
        correct = np.concatenate([e["dtMatches"][0] > 0 for e in parts]) & counted
        objects = sum((~e["gtIgnore"].astype(bool)).sum() for e in parts)
        assert judged["high"]["classes"][name] == {
            "precision": pytest.approx(correct.sum() / counted.sum()),
            "recall": pytest.approx(correct.sum() / objects),
        }


def test_regions_to_ignore_do_not_count_as_boxes(tmp_path):
    file, found = random_set(tmp_path)
    sure = {i: x.scores > 0.5 for i, x in found.items()}
    with_regions = {i: Labels(**(vars(x) | {"ignore": ~sure[i]})) for i, x in found.items()}
    boxes = {
        i: Labels(**{name: value[sure[i]] for name, value in vars(x).items()})
        for i, x in found.items()
    }
    many, few, all_of = (
        assess(images(*found), x, CLASSES, TEACHERS, truth=file)["truth"]
        for x in (with_regions, boxes, found)
    )
    assert many["high"] == few["high"] and many["AP"] == few["AP"]
    assert many["low"] == all_of["high"] != many["high"]


def test_classes_that_were_not_searched_for_do_not_count(tmp_path):
    rows = [(1, 0, 0, 10, 10, 1), (1, 20, 20, 30, 30, 2), (2, 20, 20, 30, 30, 2)]
    file = truth(tmp_path, rows, classes=["cat", "dog"])
    found = {1: labels((0, 0, 10, 10, 0, 0.9)),
             2: labels((20, 20, 30, 30, 1, 0.9), (0, 0, 9, 9, 2, 0.8))}  # fmt: skip
    annotated = {1: np.array([True, False, True])}
    result = assess(images(1, 2), found, CLASSES, TEACHERS, truth=file, annotated=annotated)
    judged = result["truth"]
    assert judged["unknown_classes"] == ["owl"]  # its labels do not count either
    assert judged["AP"] == pytest.approx(100)
    assert (judged["high"]["labels"], judged["high"]["objects"]) == (2, 2)
    assert result["reference"]["classes"] == ["cat"]


def test_a_registered_data_set(tmp_path):
    file, found = random_set(tmp_path)
    register_coco_instances("quality_test", {}, file.source, "/data")
    try:
        by_name, by_path = (
            assess(images(*found), found, CLASSES, TEACHERS, truth=source)["truth"]
            for source in (read_truth("quality_test", CLASSES), file)
        )
    finally:
        DatasetCatalog.remove("quality_test")
        MetadataCatalog.remove("quality_test")
    assert by_name.pop("source") == "quality_test" and by_path.pop("source") == file.source
    assert by_name == by_path


def test_truth_is_matched_by_files_not_by_ids(tmp_path):
    file = truth(tmp_path, [(1, 0, 0, 10, 10, 1), (2, 0, 0, 20, 20, 2), (3, 0, 0, 30, 30, 3)])
    ours = [Image(7, "/data/3.png", 9, 9), Image(1, "/data/2.png", 9, 9)]
    boxes = {i: x.boxes.tolist() for i, x in file.select_images(ours).items()}
    assert boxes == {7: [[0, 0, 30, 30]], 1: [[0, 0, 20, 20]]}


def test_ids_of_a_data_set_need_not_be_numbers(tmp_path):
    records = [
        {"image_id": f"frame_{i}", "file_name": f"data/{i}.png",
         "annotations": [{"bbox": [0, 0, i, i], "bbox_mode": 0, "category_id": 0}]}
        for i in (1, 2)
    ]  # fmt: skip
    DatasetCatalog.register("quality_test", lambda: records)
    MetadataCatalog.get("quality_test").thing_classes = ["cat"]
    try:
        found = read_truth("quality_test", CLASSES)
    finally:
        DatasetCatalog.remove("quality_test")
        MetadataCatalog.remove("quality_test")
    assert found.known.tolist() == [True, False, False]
    # A manifest may have the path as the dataset says it, or the absolute path.
    ours = [Image(5, "data/2.png", 9, 9), Image(6, os.path.abspath("data/1.png"), 9, 9)]
    assert {i: x.boxes.max() for i, x in found.select_images(ours).items()} == {5: 2, 6: 1}


def test_truth_of_other_images_is_refused(tmp_path):
    file = truth(tmp_path, OBJECTS)
    with pytest.raises(ValueError, match=r"such as /data/7.png, found 1 other images.* 1.png"):
        assess(images(7), {7: FOUND}, CLASSES, TEACHERS, truth=file)
    with pytest.raises(ValueError, match=r"one image to label for each.* found several 1.png"):
        file.select_images([Image(1, "/a/1.png", 9, 9), Image(2, "/b/1.png", 9, 9)])
    with pytest.raises(ValueError, match=r"expected true boxes of fox, found none in 1 images"):
        truth(tmp_path, OBJECTS, ours=["fox"])
    with pytest.raises(ValueError, match="expected true boxes of cat, dog, owl, found none"):
        truth(tmp_path, [], images=[1])


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere.json", "truth: expected a COCO file, found none at nowhere.json"),
        ("quality_tset", "truth: expected a dataset registered .* found 'quality_tset'"),
    ],
)
def test_missing_truth_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        read_truth(source, CLASSES)


def test_without_truth():
    found = {
        1: labels((0, 0, 9, 9, 0, 0.95), (0, 0, 9, 9, 1, 0.55), (0, 0, 9, 9, 1, 0.35, 1)),
        2: labels(),
        3: labels((0, 0, 9, 9, 2, 0.45, 1)),  # left out
        4: labels((0, 0, 9, 9, 0, 0.52)),
    }
    result = assess(images(1, 2, 3, 4, 5), found, CLASSES, TEACHERS)
    assert result["images"] == {"asked": 5, "labeled": 3, "empty": 1, "unsure": 1}
    assert (result["boxes"], result["ignore_regions"], result["boxes_per_image"]) == (3, 1, 1)
    assert result["boxes_per_image_histogram"] == [1, 1, 1]
    assert result["score_histogram"] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert result["ignore_score_histogram"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    cat = result["classes"]["cat"]
    assert (cat["boxes"], cat["mean_score"]) == (2, pytest.approx(0.735))
    assert "truth" not in result and "reference" not in result


def test_agreement_of_teachers():
    rows = [(0, 0, 9, 9, k, 0.9) for k in (0, 0, 0, 1, 2)] + [(0, 0, 9, 9, 0, 0.4, 1)]
    by = [(1, 1), (1, 0), (0, 1), (1, 0), (1, 1), (1, 1)]
    (pair,) = assess(images(1), {1: labels(*rows, teachers=by)}, CLASSES, TEACHERS)["agreement"]
    assert pair == {"teachers": TEACHERS, "both": 2, "either": 5, "rate": 0.4}
    # Only one teacher knows dogs. That the other found none is no disagreement.
    owned = np.array([[True, True, True], [True, False, True]])
    options = dict(owned=owned)
    found = {1: labels(*rows, teachers=by)}
    (pair,) = assess(images(1), found, CLASSES, TEACHERS, **options)["agreement"]
    assert (pair["both"], pair["either"], pair["rate"]) == (2, 4, 0.5)
    owned = np.array([[True, False, False], [False, True, True]])
    (pair,) = assess(images(1), found, CLASSES, TEACHERS, owned=owned)["agreement"]
    assert (pair["either"], pair["rate"]) == (0, None)


def test_warnings(tmp_path):
    # Labeled data with 4 boxes per image, and a crowd.
    rows = [(i, 0, 0, 9, 9, k, 0) for i in (11, 12) for k in (1, 1, 2, 2)]
    file = truth(tmp_path, [*rows, (11, 0, 0, 50, 50, 1, 1)], ours=CLASSES[:2])
    box = (0, 0, 9, 9, 0, 0.9)

    def warnings(each, **options):
        found = {i: labels(*[box] * each) for i in range(10)}
        result = assess(images(*range(10)), found, CLASSES[:2], TEACHERS, reference=file, **options)
        return result["warnings"], result["reference"]["ratio"]

    few = "dog: 0 boxes, expected 20 or more"
    assert warnings(12) == ([few], 3)
    lines, ratio = warnings(13)
    assert ratio == 3.25 and lines[1].startswith(
        "boxes per image: 3.25 times the number in labeled"
    )
    lines, ratio = warnings(1)
    assert ratio == 0.25 and lines[0] == "cat: 10 boxes, expected 20 or more" and len(lines) == 3
    assert warnings(12, min_boxes=0) == ([], 3)
    never = {i: np.array([True, False]) for i in range(10)}
    # There are 2 cats per image.
    assert warnings(5, annotated=never) == (["dog: no teacher searched for it"], 2.5)
    assert assess(images(1), {}, CLASSES, TEACHERS)["warnings"] == ["no image is labeled"]


def test_labels_that_hardly_match_the_truth_are_a_warning(tmp_path):
    # Two images with a cat and a dog each.
    rows = [(i, 10 * k, 0, 10 * k + 9, 9, k) for i in (1, 2) for k in (1, 2)]
    file = truth(tmp_path, rows, ours=CLASSES[:2])

    def warnings(*found):
        each = {i: labels(*found) for i in (1, 2)}
        options = dict(truth=file, min_boxes=0)
        return assess(images(1, 2), each, CLASSES[:2], TEACHERS, **options)["warnings"]

    cat, dog = (10, 0, 19, 9, 0, 0.9), (20, 0, 29, 9, 1, 0.8)
    assert warnings(cat, dog) == []
    # All boxes are somewhere else, as of a teacher that sees images of another size.
    (line,) = warnings((60, 60, 69, 69, 0, 0.9), (60, 60, 69, 69, 1, 0.9))
    assert line.startswith(
        "the labels hardly match the ground truth: AP 0.0, precision 0.000, recall 0.000"
    )
    assert "min_size_test" in line and "input_format" in line
    # Only the dogs are wrong.
    (line,) = warnings(cat, (60, 60, 69, 69, 1, 0.9))
    assert line.startswith("dog: its labels hardly match the ground truth: AP 0.0, precision 0.000")
    # There are no boxes at all.
    none, hardly = warnings()
    assert none.startswith("no box reaches the high threshold")
    assert hardly.startswith("the labels hardly match") and "precision none" in hardly


def test_the_report_says_which_boxes_its_ap_counts(tmp_path):
    file = truth(tmp_path, OBJECTS)
    write_report(tmp_path, images(1), {1: FOUND}, CLASSES, TEACHERS, truth=file, samples=0)
    assert "counts only boxes above the high threshold" in (tmp_path / "report.md").read_text()


def test_divergence_of_classes(tmp_path):
    file = truth(tmp_path, [(1, 0, 0, 9, 9, k) for k in (1, 1, 2)])
    found = {5: labels(*[(0, 0, 9, 9, k, 0.9) for k in (0, 1, 1, 1, 1)])}
    result = assess(images(5), found, CLASSES, TEACHERS, reference=file)["reference"]
    p, q = np.array([2, 5, 1]) / 8, np.array([3, 2, 1]) / 6  # counts plus one
    assert result["class_divergence"] == pytest.approx((p * np.log(p / q)).sum())
    assert (result["boxes_per_image"], result["expected_boxes_per_image"]) == (5, 3)


def files_of(folder, data, **options):
    found = {1: FOUND, 2: labels()}
    shown = [Image(i, f"{data}/{i}.png", 100, 100) for i in (1, 2)]
    return write_report(folder, shown, found, CLASSES, TEACHERS, **options)


def test_files(tmp_path):
    for i in (1, 2):
        PIL.Image.new("RGB", (100, 100), (90, 0, 0)).save(tmp_path / f"{i}.png")
    file = truth(tmp_path, OBJECTS)
    report = files_of(tmp_path / "a", tmp_path, truth=file)
    files_of(tmp_path / "b", tmp_path, truth=file, samples=0)
    names = ["report.json", "report.md", "samples.png"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    for name in names[:2]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == report
    text = (tmp_path / "a" / "report.md").read_text()
    assert "- owl: 1 boxes, expected 20 or more" in text
    assert "| high | 5 | 3 | 0.200 | 0.333 | 1.000 | 1 | 1 | 1 | 1 | 2 |" in text
    assert "| cat | 4 | 1 | 0.750 |" in text and "| big, other | 6 | 6 | 1.000 |" in text

    pixels = np.asarray(PIL.Image.open(tmp_path / "a" / "samples.png").convert("RGB")).astype(int)
    assert pixels.shape[1] == 840  # two images side by side
    left, right = pixels[:420, :420], pixels[:420, 420:]
    for color in ((0x19, 0xD3, 0xF3), (0xFF, 0xB0, 0x00)):  # boxes, regions to ignore
        near = [(np.abs(x - color).sum(-1) < 30).sum() for x in (left, right)]
        assert near[0] > 100 and near[1] == 0
    assert (right[200, 200] == (90, 0, 0)).all()


def test_files_without_truth_or_labels(tmp_path):
    files_of(tmp_path / "a", tmp_path, samples=0)
    assert "no labeled data were given" in (tmp_path / "a" / "report.md").read_text()
    write_report(tmp_path / "b", images(1), {}, CLASSES, TEACHERS)
    assert "- no image is labeled" in (tmp_path / "b" / "report.md").read_text()
    for name in "ab":
        assert not (tmp_path / name / "samples.png").exists()
