"""Compare CrowdHuman's metrics with plain loops from their definition and with values by hand."""

import functools
import json
import math
import os
import random

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from PIL import Image

from d2kd import evaluation
from d2kd.data.crowdhuman import register_crowdhuman
from d2kd.evaluation import crowdhuman as measures
from d2kd.evaluation.crowdhuman import CrowdHumanEvaluator, ap_and_miss_rate, jaccard_indices, match

WIDTH, HEIGHT = 100, 80
RATES = [0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.000]


# The definition, one box at a time. A box is a list x, y, w, h. A detection is a pair (box, score).


def cut(box):
    x, y, w, h = box
    return [
        min(max(x, 0), WIDTH - 1),
        min(max(y, 0), HEIGHT - 1),
        min(max(x + w, 0), WIDTH),
        min(max(y + h, 0), HEIGHT),
    ]


def area(a):
    return max(a[2] - a[0], 0) * max(a[3] - a[1], 0)


def common(a, b):
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def iou(a, b):
    return common(a, b) / (area(a) + area(b) - common(a, b) + 1e-6)


def lies_in(a, regions):
    return any(common(a, b) / (area(a) + 1e-6) > 0.5 for b in regions)


def best_pairs(weights: list[list[float]]) -> list[tuple[int, int]]:
    """The matching with the largest sum, found by trying all matchings."""

    @functools.cache
    def best(row: int, taken: int):
        if row == len(weights):
            return 0.0, ()
        total, pairs = best(row + 1, taken)
        for column, weight in enumerate(weights[row]):
            if weight > 0.5 and not taken >> column & 1:
                rest, others = best(row + 1, taken | 1 << column)
                if rest + weight > total:
                    total, pairs = rest + weight, ((row, column), *others)
        return total, pairs

    return list(best(0, 0)[1])


def prepared(detections):
    found = sorted((d for d in detections if d[1] > 0.05), key=lambda d: -d[1])[:500]
    return [([round(v, 1) for v in box], round(score, 5)) for box, score in found]


def plain_ap_and_mr(scenes):
    judged, valid = [], 0
    for detections, people in scenes:
        free = [cut(box) for box, ignore in people if not ignore]
        regions = [cut(box) for box, ignore in people if ignore]
        valid += len(free)
        for box, score in prepared(detections):
            box, best, where = cut(box), 0.5, None
            for i, person in enumerate(free):
                if person is not None and iou(box, person) > best:
                    best, where = iou(box, person), i
            if where is not None:
                free[where] = None
                judged.append((score, 1))
            elif not lies_in(box, regions):
                judged.append((score, 0))
    judged.sort(key=lambda pair: -pair[0])
    tp = fp = 0
    recalls, precisions, fppis = [], [], []
    for _, hit in judged:
        tp, fp = tp + hit, fp + 1 - hit
        recalls.append(tp / valid)
        precisions.append(tp / (tp + fp))
        fppis.append(fp / len(scenes))
    ap = sum(
        (recalls[k] - recalls[k - 1]) * (precisions[k] + precisions[k - 1]) / 2
        for k in range(1, len(judged))
    )
    logs = []
    for rate in RATES:
        k = next((k for k, fppi in enumerate(fppis) if fppi >= rate), len(judged) - 1)
        miss = 1 - recalls[k] if judged else 1.0
        logs.append(math.log(miss) if miss > 0 else -math.inf)
    return ap, math.exp(sum(logs) / 9)


def plain_ji(scenes):
    results = []
    for threshold in range(10):
        total, images = 0.0, 0
        for detections, people in scenes:
            boxes = [cut(box) for box, score in prepared(detections) if score > threshold / 10]
            people = [(box, ignore) for box, ignore in people if box[2] > 0 and box[3] > 0]
            people = [(cut([round(v, 1) for v in box]), ignore) for box, ignore in people]
            regions = [box for box, ignore in people if ignore]
            valid = [box for box, ignore in people if not ignore]
            pairs = best_pairs([[iou(box, person) for person in valid] for box in boxes])
            rows, columns = {r for r, _ in pairs}, {c for _, c in pairs}
            n = len(boxes) - sum(lies_in(b, regions) for i, b in enumerate(boxes) if i not in rows)
            m = len(valid) - sum(
                lies_in(b, regions) for i, b in enumerate(valid) if i not in columns
            )
            total += len(pairs) / (m + n - len(pairs) + 1e-6)
            images += n != 0 or m != 0
        if images:
            results.append(total / images)
    return max(results)


# Scenes


def random_scenes(seed: int, count: int = 12, places: int = 5):
    """Random images of crowds with all special cases.

    Boxes extend beyond the border, some regions are ignored, some boxes are flat, and some images
    are empty. Scores have `places` digits; with three or fewer, some scores are equal.
    """
    rng = random.Random(seed)

    def person():
        w = rng.choice([rng.uniform(8, 40)] * 12 + [0.0, -3.0, 0.04])
        h = rng.choice([rng.uniform(8, 50)] * 12 + [0.0, -2.5])
        return [rng.uniform(-20, WIDTH + 5), rng.uniform(-20, HEIGHT + 5), w, h]

    scenes = []
    for _ in range(count):
        people = [(person(), rng.random() < 0.3) for _ in range(rng.choice([0, 1, 3, 6, 7]))]
        detections = []
        for box, _ in people * rng.choice([0, 1, 2]):
            shift = rng.choice([0, 0.5, 3, 6])
            near = [v + rng.uniform(-shift, shift) for v in box]
            near[2:] = [max(v, 0.5) for v in near[2:]]
            detections.append((near, round(rng.random() ** 0.7, places)))
        for _ in range(rng.choice([0, 0, 1, 3])):
            box = [rng.uniform(-5, 80), rng.uniform(-5, 60), rng.uniform(1, 50), rng.uniform(1, 50)]
            detections.append((box, round(rng.random(), places)))
        rng.shuffle(detections)
        scenes.append((detections, people))
    return scenes


@pytest.fixture
def root(tmp_path):
    saved = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    (tmp_path / "crowdhuman" / "Images").mkdir(parents=True)
    register_crowdhuman(tmp_path)
    yield tmp_path
    DatasetCatalog.data, MetadataCatalog.data = saved


def write(root, scenes) -> None:
    lines = []
    for i, (_, people) in enumerate(scenes):
        Image.new("L", (WIDTH, HEIGHT)).save(root / "crowdhuman" / "Images" / f"{i}.jpg")
        boxes = [{"tag": "mask" if ignore else "person", "fbox": box} for box, ignore in people]
        lines.append(json.dumps({"ID": str(i), "gtboxes": boxes}) + "\n")
    (root / "crowdhuman" / "annotation_val.odgt").write_text("".join(lines))


def instances(detections, classes=None) -> Instances:
    # float64, so that only the evaluator rounds
    boxes = np.array([box for box, _ in detections], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    result = Instances((HEIGHT, WIDTH))
    result.pred_boxes = Boxes(torch.zeros(len(boxes), 4))
    result.pred_boxes.tensor = torch.from_numpy(boxes)
    result.scores = torch.tensor([score for _, score in detections], dtype=torch.float64)
    result.pred_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.long)
    return result


def process(evaluator, scenes, images=None) -> None:
    images = range(len(scenes)) if images is None else images
    evaluator.process(
        [{"image_id": i} for i in images], [{"instances": instances(scenes[i][0])} for i in images]
    )


def evaluate(root, scenes, **options) -> dict:
    write(root, scenes)
    evaluator = CrowdHumanEvaluator("crowdhuman_val", **options)
    evaluator.reset()
    process(evaluator, scenes)
    return evaluator.evaluate()["bbox"]


def plain(scenes) -> dict:
    ap, mr = plain_ap_and_mr(scenes)
    return {"AP": 100 * ap, "MR": 100 * mr, "JI": 100 * plain_ji(scenes)}


# Against the definition


@pytest.mark.parametrize("places", [7, 3, 1])
@pytest.mark.parametrize("seed", range(6))
def test_random_scenes(root, seed, places):
    scenes = random_scenes(seed, places=places)
    expected = plain(scenes)
    assert 0 < expected["AP"] < 100 and 0 < expected["MR"] < 100 and 0 < expected["JI"] < 100
    assert evaluate(root, scenes) == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_random_scenes_show_every_rule():
    scenes = [scene for seed in range(6) for scene in random_scenes(seed)]
    people = [person for scene in scenes for person in scene[1]]
    assert any(not found for found, _ in scenes) and any(not people for _, people in scenes)
    assert any(box[2] <= 0 and not ignore for box, ignore in people)
    assert any(box[0] > WIDTH for box, _ in people) and any(box[0] < 0 for box, _ in people)
    corners = [np.array([cut(b) for b, _ in scene[1]]).reshape(-1, 4) for scene in scenes]
    ignored = [np.array([i for _, i in scene[1]], dtype=bool) for scene in scenes]
    found = [np.array([cut(b) for b, _ in prepared(s[0])]).reshape(-1, 4) for s in scenes]
    hits = np.concatenate([match(*args) for args in zip(found, corners, ignored, strict=True)])
    assert (hits == 1).any() and (hits == 0).any() and np.isnan(hits).any()


# Matching by hand

PERSON = np.array([[0.0, 0, 10, 10]])


def boxes(*rows) -> np.ndarray:
    return np.array(rows, dtype=float).reshape(-1, 4)


def test_a_person_is_matched_once():
    hits = match(boxes([0, 0, 10, 9], [0, 0, 10, 10]), PERSON, np.array([False]))
    assert hits.tolist() == [1, 0]


def test_equal_overlaps_match_the_first_person_and_then_the_other():
    # The first detection lies in the middle between two people. The second detection fits only the
    # first person, who is matched already.
    people = boxes([0, 0, 10, 10], [2, 0, 12, 10])
    found = boxes([1, 0, 11, 10], [0, 0, 7, 10])
    assert match(found, people, np.zeros(2, bool)).tolist() == [1, 0]
    assert match(found, people[::-1], np.zeros(2, bool)).tolist() == [1, 1]


def test_iou_of_one_half_is_not_enough():
    assert match(boxes([0, 0, 10, 5]), PERSON, np.array([False])).tolist() == [0]
    assert match(boxes([0, 0, 10, 5.01]), PERSON, np.array([False])).tolist() == [1]


def test_a_person_comes_before_an_ignored_region_which_matches_any_number():
    people = np.concatenate([PERSON, PERSON])
    hits = match(boxes(*[[0, 0, 10, 10]] * 3), people, np.array([True, False]))
    np.testing.assert_array_equal(hits, [1, np.nan, np.nan])


def test_a_region_matches_boxes_inside_it_even_if_their_iou_is_low():
    found = boxes([0, 0, 2, 2], [0, 0, 40, 40])
    np.testing.assert_array_equal(match(found, PERSON, np.array([True])), [np.nan, 0])


def test_matching_without_boxes_or_people():
    assert match(boxes(), PERSON, np.array([False])).shape == (0,)
    assert match(PERSON, boxes(), np.zeros(0, bool)).tolist() == [0]


# AP and MR^-2 by hand


def test_ap_and_miss_rate_by_hand():
    scores, hits = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 0, np.nan, 1])
    ap, mr = ap_and_miss_rate(scores, hits, num_people=4, num_images=10)
    # Recall is 1/4, 1/4, 1/2; precision 1, 1/2, 2/3; false positives per image 0, 0.1, 0.1. The
    # rate 0.1 is reached with a miss rate of 3/4. Higher rates are never reached and use 1/2.
    assert ap == pytest.approx(0.25 * (1 / 2 + 2 / 3) / 2, abs=1e-12)
    assert mr == pytest.approx((0.75**5 * 0.5**4) ** (1 / 9), abs=1e-12)


def test_equal_scores_keep_their_order():
    first = ap_and_miss_rate(np.array([0.5, 0.5]), np.array([1.0, 0]), 2, 1)
    last = ap_and_miss_rate(np.array([0.5, 0.5]), np.array([0.0, 1]), 2, 1)
    assert first == (0, 0.5) and last == (0.5 * 0.25, 1.0)


def test_all_people_found_without_a_mistake():
    ap, mr = ap_and_miss_rate(np.array([0.9, 0.8]), np.ones(2), num_people=2, num_images=1)
    assert ap == pytest.approx(0.5) and mr == 0  # the first detection adds no area


def test_no_detections_and_no_people():
    none = np.zeros(0)
    assert ap_and_miss_rate(none, none, num_people=3, num_images=2) == (0, 1)
    assert np.isnan(ap_and_miss_rate(np.ones(1), np.zeros(1), 0, 2)).all()


# JI by hand


def test_jaccard_matches_the_highest_sum_where_the_first_detection_would_block_one():
    people = boxes([0, 0, 10, 10], [3, 0, 13, 10])
    found = boxes([1, 0, 11, 10], [-2, 0, 8, 10])  # the second fits only the first person
    ji = jaccard_indices(found, np.array([0.95, 0.45]), people, np.zeros(2, bool))
    np.testing.assert_allclose(ji, [1] * 5 + [1 / 2] * 5, atol=1e-6)


def test_jaccard_prefers_a_larger_sum_to_more_pairs():
    # A detection has an IoU of 1 with at most one person, and of 0.515 with the neighbors. The sum
    # of two exact pairs is larger than the sum of the three pairs that are possible.
    people = boxes([3.2, 0, 13.2, 10], [6.4, 0, 16.4, 10], [9.6, 0, 19.6, 10])
    found = boxes([0, 0, 10, 10], [3.2, 0, 13.2, 10], [6.4, 0, 16.4, 10])
    ji = jaccard_indices(found, np.array([0.97, 0.96, 0.95]), people, np.zeros(3, bool))
    np.testing.assert_allclose(ji, 2 / (3 + 3 - 2), atol=1e-6)


def test_jaccard_leaves_out_boxes_in_ignored_regions_unless_matched():
    region, inside = [50.0, 0, 90, 40], [60.0, 10, 70, 20]
    people, ignored = boxes(region, inside, [0, 0, 10, 10]), np.array([True, False, False])
    scores = np.array([0.95, 0.94])
    unmatched = boxes([0, 0, 10, 10], [80, 30, 88, 38])  # person and box inside are left out
    np.testing.assert_allclose(jaccard_indices(unmatched, scores, people, ignored), 1, atol=1e-6)
    matched = boxes([20, 20, 30, 30], inside)  # one pair, a false positive, a missed person
    np.testing.assert_allclose(jaccard_indices(matched, scores, people, ignored), 1 / 3, atol=1e-6)


def test_jaccard_of_scores_at_a_threshold():
    ji = jaccard_indices(PERSON, np.array([0.3]), PERSON, np.array([False]))
    np.testing.assert_allclose(ji, [1] * 3 + [0] * 7, atol=1e-6)


def test_jaccard_of_nothing_is_not_defined():
    assert np.isnan(jaccard_indices(boxes(), np.zeros(0), boxes(), np.zeros(0, bool))).all()
    inside = jaccard_indices(boxes([0, 0, 5, 5]), np.array([0.35]), PERSON, np.array([True]))
    assert np.isnan(inside).all()
    alone = jaccard_indices(PERSON, np.array([0.35]), boxes(), np.zeros(0, bool))
    np.testing.assert_array_equal(alone, [0] * 4 + [np.nan] * 6)


# The evaluator


def test_flat_boxes_count_for_ap_and_mr_only(root):
    person, flat = [10.0, 10, 20, 30], [5.0, 5, 0, 9]
    scenes = [([(person, 0.9)], [(person, False), (flat, False)])]
    results = evaluate(root, scenes)
    assert results == pytest.approx({"AP": 0, "MR": 50, "JI": 100}, abs=1e-4)


def test_boxes_are_clipped_at_the_border(root):
    person, found = [-30.0, 0, 60, 80], [0.0, 0, 30, 80]  # IoU 0.5 uncut, 1 cut
    assert evaluate(root, [([(found, 0.9)], [(person, False)])])["MR"] == 0


def test_rounding_of_detections_for_all_and_of_people_for_the_jaccard_index(root):
    whole, half = [0.0, 0, 10, 10], [0.0, 0, 10, 5.04]  # IoU 0.504; rounded, it is no match
    results = evaluate(root, [([(half, 0.9)], [(whole, False)])])
    assert results["MR"] == 100 and results["JI"] == 0
    (root / "crowdhuman" / "annotation_val.json").unlink()
    results = evaluate(root, [([(whole, 0.9)], [(half, False)])])
    assert results["MR"] == 0 and results["JI"] == 0


def test_limits_of_number_and_score(root):
    person = [10.0, 10, 20, 30]
    wrong = [([60.0, 10, 20, 30], 0.9)] * 500
    scenes = [([*wrong, (person, 0.5)], [(person, False)])]
    assert evaluate(root, scenes)["MR"] == 100
    assert evaluate(root, scenes, max_dets_per_image=501)["AP"] > 0
    scenes = [([(person, 0.05)], [(person, False)])]
    assert evaluate(root, scenes)["MR"] == 100
    assert evaluate(root, scenes, score_thresh=0.04)["MR"] == 0


def test_other_classes_are_left_out(root):
    person = [10.0, 10, 20, 30]
    write(root, [([], [(person, False)])])
    evaluator = CrowdHumanEvaluator("crowdhuman_val")
    found = instances([(person, 0.9), ([50.0, 5, 20, 30], 0.8)], classes=[0, 1])
    evaluator.process([{"image_id": 0}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["JI"] == pytest.approx(100, abs=1e-4)


def test_no_detections(root):
    scenes = [([], people) for _, people in random_scenes(0)]
    assert evaluate(root, scenes) == {"AP": 0, "MR": 100, "JI": 0}


def test_no_people_in_any_image(root):
    assert all(math.isnan(v) for v in evaluate(root, [([], []), ([], [])]).values())
    (root / "crowdhuman" / "annotation_val.json").unlink()
    results = evaluate(root, [([([1.0, 2, 30, 40], 0.9)], []), ([], [])])
    assert math.isnan(results["AP"]) and math.isnan(results["MR"]) and results["JI"] == 0


def test_images_without_predictions_count(root):
    scenes = random_scenes(1)
    write(root, scenes)
    evaluator = CrowdHumanEvaluator("crowdhuman_val")
    process(evaluator, scenes, images=range(4))
    unseen = [*scenes[:4], *(([], people) for _, people in scenes[4:])]
    assert evaluator.evaluate()["bbox"] == pytest.approx(plain(unseen), abs=1e-9)


def test_some_images(root):
    scenes = random_scenes(2)
    write(root, scenes)
    evaluator = CrowdHumanEvaluator("crowdhuman_val")
    process(evaluator, scenes)
    some = evaluator.evaluate(img_ids=[5, 4, 3, 2, 1, 0])["bbox"]
    assert some == pytest.approx(plain(scenes[:6]), abs=1e-9)
    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP"] == 0


def test_float32_predictions_of_a_detector(root):
    scenes = [
        ([([np.float32(v).item() for v in box], score) for box, score in found], people)
        for found, people in random_scenes(3, places=2)
    ]
    write(root, scenes)
    evaluator = CrowdHumanEvaluator("crowdhuman_val")
    for i, (found, _) in enumerate(scenes):
        single = instances(found)
        single.pred_boxes = Boxes(single.pred_boxes.tensor.float())
        single.scores = single.scores.float()
        evaluator.process([{"image_id": i}], [{"instances": single}])
    assert evaluator.evaluate()["bbox"] == pytest.approx(plain(scenes), abs=1e-9)


def test_in_a_config_with_detectron2s_loader(root):
    scenes = [
        scene for scene in random_scenes(0) if all(box[2] > 1 < box[3] for box, _ in scene[1])
    ]
    write(root, scenes)
    cfg = OmegaConf.create()
    cfg.dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    cfg.dataloader.test.dataset.names = "crowdhuman_val"
    cfg.dataloader.test.num_workers = 0
    cfg.dataloader.evaluator = L(CrowdHumanEvaluator)(dataset_name="${..test.dataset.names}")

    def detector(batch):  # finds all people, and nothing else
        found = [[(b, 0.9) for b, ignore in scenes[x["image_id"]][1] if not ignore] for x in batch]
        return [{"instances": instances(detections)} for detections in found]

    results = evaluation.evaluate(cfg, detector)["bbox"]
    assert results["JI"] == pytest.approx(100, abs=1e-4) and list(results) == ["AP", "MR", "JI"]


def test_a_dataset_of_another_kind():
    with pytest.raises(ValueError, match=r"expected a dataset with odgt_file .*'coco_2017_val'"):
        CrowdHumanEvaluator("coco_2017_val")


# Several processes


def _one_of_two(rank: int, root, scenes) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2
    )
    register_crowdhuman(root)
    evaluator = CrowdHumanEvaluator("crowdhuman_val")
    process(evaluator, scenes, images=range(rank, len(scenes), 2))
    (root / f"{rank}.json").write_text(json.dumps(evaluator.evaluate()))
    alone = CrowdHumanEvaluator("crowdhuman_val", distributed=False)
    process(alone, scenes, images=range(rank, len(scenes), 2))
    (root / f"alone{rank}.json").write_text(json.dumps(alone.evaluate()))
    os._exit(0)  # as in tests/ranks.py: gloo may abort while the interpreter shuts down


@pytest.mark.slow
def test_two_processes(root):
    scenes = random_scenes(4)
    write(root, scenes)
    torch.multiprocessing.spawn(_one_of_two, (root, scenes), nprocs=2)
    results = [json.loads((root / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert results == [{"bbox": pytest.approx(plain(scenes), abs=1e-9)}, {}]
    odd = [(found if i % 2 else [], people) for i, (found, people) in enumerate(scenes)]
    alone = json.loads((root / "alone1.json").read_text())
    assert alone == {"bbox": pytest.approx(plain(odd), abs=1e-9)}


def test_predictions_of_all_processes_are_gathered(root, monkeypatch):
    scenes = random_scenes(5)
    write(root, scenes)
    other = CrowdHumanEvaluator("crowdhuman_val")
    process(other, scenes, images=range(1, len(scenes), 2))
    own = CrowdHumanEvaluator("crowdhuman_val")
    process(own, scenes, images=range(0, len(scenes), 2))
    monkeypatch.setattr(measures.comm, "gather", lambda x, dst: [x, other._predictions])
    assert own.evaluate()["bbox"] == pytest.approx(plain(scenes), abs=1e-9)
    monkeypatch.setattr(measures.comm, "is_main_process", lambda: False)
    assert own.evaluate() == {}
