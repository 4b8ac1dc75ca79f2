"""Kinds of errors: hand-worked images, and COCO's own AP50."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2kd.evaluation.errors import ErrorEvaluator, error_costs
from d2kd.matching import Detections, GroundTruth

A, B = [0, 0, 10, 10], [20, 20, 30, 30]


def detections(*rows):
    """Rows of (box, class, score)."""
    boxes = np.array([r[0] for r in rows], dtype=float).reshape(-1, 4)
    classes, scores = (np.array([r[i] for r in rows]) for i in (1, 2))
    return Detections(boxes=boxes, classes=classes.astype(int), scores=scores.astype(float))


def truth(*rows):
    """Rows of (box, class)."""
    boxes = np.array([r[0] for r in rows], dtype=float).reshape(-1, 4)
    return GroundTruth(boxes, np.array([r[1] for r in rows], dtype=int))


def costs(found, objects):
    values = error_costs([(found, objects)])
    return {k: round(v, 6) for k, v in values.items() if v}


def test_perfect_detections_cost_nothing():
    assert costs(detections((A, 0, 0.9), (B, 1, 0.8)), truth((A, 0), (B, 1))) == {"AP50": 100}


def test_wrong_class():
    # Class 1 has AP 0; with the right class, both have 100. The object is not "missed".
    assert costs(detections((A, 0, 0.9), (B, 0, 0.8)), truth((A, 0), (B, 1))) == {
        "AP50": 50,
        "class": 50,
    }


def test_poor_location():
    # IoU of [0, 0, 10, 4] and A is 0.4.
    assert costs(detections(([0, 0, 10, 4], 0, 0.9)), truth((A, 0))) == {"location": 100}


def test_both_wrong_leaves_the_object_missed():
    found = detections((B, 1, 0.9), ([0, 0, 10, 4], 1, 0.95))
    # Class 1: precision 0, 1/2. Without the wrong detection: 1. Class 0 has no detection at all, so
    # that without its missed object it has no object, and class 1 is the mean.
    assert costs(found, truth((A, 0), (B, 1))) == {"AP50": 25, "both": 25, "missed": 25}


def test_duplicate_above_a_correct_detection():
    found = detections((A, 0, 0.9), ([0, 0, 10, 9], 0, 0.8), (B, 0, 0.7))
    # Recall 1/2 at precision 1 (51 of 101 recalls), recall 1 at 2/3.
    ap = 100 * (51 + 50 * 2 / 3) / 101
    assert costs(found, truth((A, 0), (B, 0))) == {
        "AP50": round(ap, 6),
        "duplicate": round(100 - ap, 6),
    }


def test_background_and_image_without_objects():
    pairs = [
        (detections((A, 0, 0.8)), truth((A, 0))),
        (detections((B, 0, 0.9)), truth()),
    ]
    values = error_costs(pairs)
    assert values["AP50"] == pytest.approx(50) and values["background"] == pytest.approx(50)


def test_missed():
    values = costs(detections((A, 0, 0.9)), truth((A, 0), (B, 0)))
    assert values == {"AP50": round(100 * 51 / 101, 6), "missed": round(100 * 50 / 101, 6)}


def test_correcting_two_errors_of_one_object_keeps_the_better_one():
    found = detections((A, 1, 0.9), ([0, 0, 10, 9], 1, 0.8))
    assert costs(found, truth((A, 0))) == {"class": 100}


def test_no_detections_and_no_objects():
    assert np.isnan(error_costs([(detections(), truth())])["AP50"])
    values = error_costs([(detections(), truth((A, 0)))])
    assert values["AP50"] == 0 and np.isnan(values["missed"])


def test_evaluator_reads_the_data_set():
    record = {"bbox": A, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    crowd = {"bbox": B, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1}
    DatasetCatalog.register(
        "errors_test", lambda: [{"image_id": 7, "annotations": [record, crowd]}]
    )
    try:
        evaluator = ErrorEvaluator("errors_test")
    finally:
        DatasetCatalog.remove("errors_test")
    instances = Instances((40, 40))
    instances.pred_boxes = Boxes(torch.tensor([A], dtype=torch.float32))
    instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([0.9])
    evaluator.process([{"image_id": 7}], [{"instances": instances}])
    assert evaluator.evaluate()["errors"]["AP50"] == 100
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["errors"]["AP50"])


@pytest.mark.parametrize("seed", range(3))
def test_ap50_equals_coco(seed):
    rng = np.random.default_rng(seed)
    dataset = {"images": [], "annotations": [], "categories": [{"id": i} for i in range(3)]}
    results, pairs = [], []
    for image in range(12):
        dataset["images"].append({"id": image})
        objects, found = [], []
        for _ in range(rng.integers(0, 6)):
            corner, size = rng.uniform(0, 50, 2), rng.uniform(8, 30, 2)
            box, k = [*corner, *(corner + size)], int(rng.integers(3))
            objects.append((box, k))
            for _ in range(rng.integers(0, 4)):
                moved = np.array(box) + rng.normal(0, 3, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                found.append((moved, k if rng.uniform() < 0.8 else 0, rng.uniform()))
        for box, k in objects:
            dataset["annotations"].append(
                {
                    "id": len(dataset["annotations"]) + 1,
                    "image_id": image,
                    "category_id": k,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": (box[2] - box[0]) * (box[3] - box[1]),
                    "iscrowd": 0,
                }
            )
        for box, k, score in found:
            box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": image, "category_id": k, "bbox": box, "score": score})
        pairs.append((detections(*found), truth(*objects)))
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert error_costs(pairs)["AP50"] == pytest.approx(100 * evaluation.stats[1], abs=1e-6)
    assert len(results) > 10
