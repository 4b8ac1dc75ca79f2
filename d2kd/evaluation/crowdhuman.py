"""CrowdHuman's metrics of detection in crowds: AP, MR^-2 and the Jaccard index.

CrowdHuman is arXiv 1805.00123. The details follow PGD's released code (ECCV 2022,
``crowd_code/eval_crowd_metric.py``), so that figures can be compared with its tables:

* AP, higher is better: the area under the curve of precision over recall, by trapezoids between
  the detections, beginning at the first detection. Unlike COCO's AP50, the curve has no envelope,
  and the IoU must exceed 0.5.
* MR^-2, lower is better: the geometric mean of the miss rate at nine numbers of false positives per
  image, from 0.01 to 1.
* JI, higher is better: the number of matched pairs, divided by the number of people plus detections
  minus matched pairs; the mean over the images, at the score threshold (0, 0.1 ... 0.9) where it is
  highest.

Shapes: D detections and G people of one image, K detections of all images. Boxes are in pixels of
the stored image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from scipy.integrate import trapezoid
from scipy.optimize import linear_sum_assignment

from ..data.crowdhuman import read_odgt

__all__ = ["CrowdHumanEvaluator", "ap_and_miss_rate", "jaccard_indices", "match"]

logger = logging.getLogger(__name__)

FALSE_POSITIVES = [0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0]  # per image
THRESHOLDS = np.arange(10) / 10  # of the score, for the Jaccard index
EPS = 1e-6  # in every denominator of areas


def _corners(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Convert boxes (B, 4) from x, y, width, height to x1, y1, x2, y2, clipped to the image.

    As in the released code, a box that lies right of the image or below it keeps one pixel.
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    low = np.clip(low, 0, [width - 1, height - 1])
    return np.hstack([low, np.clip(high, 0, [width, height])])


def _overlaps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU (A, B) of boxes (A, 4) and (B, 4), and intersection over the area of `a`, (A, B).

    A box with a width or height <= 0 overlaps with no other box.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(0).prod(axis=-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=-1) for boxes in (a, b))
    area_a = area_a[:, None]
    return common / (area_a + area_b - common + EPS), common / (area_a + EPS)


def _mostly_in(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """(A,) bool, whether more than half of a box's area lies in one of the regions."""
    return np.any(_overlaps(boxes, regions)[1] > 0.5, axis=1)


def match(boxes: np.ndarray, people: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Match the detections of one image to people, in the order of their scores ("Caltech").

    A detection takes the free person with the highest IoU (the first one of equal ones), if the IoU
    is above 0.5. Otherwise it is dropped if more than half of its area lies in an ignored region.
    Any number of detections may lie in the same region.

    Args:
        boxes: (D, 4) x1y1x2y2, by descending score.
        people: (G, 4) x1y1x2y2, in the order of the file.
        ignored: (G,) bool, which of them are ignored regions.

    Returns:
        (D,) float64: 1 for a true positive, 0 for a false positive, NaN for a dropped one.
    """
    iou, _ = _overlaps(boxes, people[~ignored])
    iou[iou <= 0.5] = 0
    hits = np.zeros(len(boxes))
    for i in np.flatnonzero(iou.any(axis=1)):  # only the few detections that overlap a person
        best = iou[i].argmax()
        if iou[i, best] > 0:
            hits[i] = 1
            iou[:, best] = 0
    hits[(hits == 0) & _mostly_in(boxes, people[ignored])] = np.nan
    return hits


def ap_and_miss_rate(
    scores: np.ndarray, hits: np.ndarray, num_people: int, num_images: int
) -> tuple[float, float]:
    """AP and MR^-2 over all images, in [0, 1].

    The curve of AP begins at the first detection, which adds no area. If a number of false
    positives is never reached, the miss rate of all detections is used for it. If the miss rate is
    0 at one of the nine points, MR^-2 is 0.

    Args:
        scores: (K,), image by image; equal scores keep their order.
        hits: (K,), see `match`.
        num_people: number of people in all images, without ignored regions.
        num_images: number of all images, including images without people.

    Returns:
        AP and MR^-2; both NaN if there are no people.
    """
    if not num_people:
        return np.nan, np.nan
    order = np.argsort(-scores, kind="stable")
    hits = hits[order]
    hits = hits[~np.isnan(hits)]
    true, both = hits.cumsum(), np.arange(1, len(hits) + 1)
    recall = true / num_people
    ap = trapezoid(true / both, recall)
    misses = np.append(1.0, 1 - recall)  # before any detection, all are missed
    points = np.searchsorted((both - true) / num_images, FALSE_POSITIVES) + 1
    with np.errstate(divide="ignore"):
        miss_rate = np.exp(np.log(misses[points.clip(max=len(recall))]).mean())
    return float(ap), float(miss_rate)


def jaccard_indices(
    boxes: np.ndarray, scores: np.ndarray, people: np.ndarray, ignored: np.ndarray
) -> np.ndarray:
    """Jaccard index of one image at each of `THRESHOLDS`, for the detections above the threshold.

    Detections and people with IoU > 0.5 are matched one to one such that the sum of the IoUs is
    highest (the number of pairs need not be). An unmatched detection or person does not count if
    more than half of its area lies in an ignored region.

    Args:
        boxes, people, ignored: see `match`.
        scores: (D,), descending.

    Returns:
        (10,) in [0, 1]; NaN where neither detections nor people count.
    """
    regions, people = people[ignored], people[~ignored]
    iou, _ = _overlaps(boxes, people)
    iou[iou <= 0.5] = 0
    boxes_count, people_count = ~_mostly_in(boxes, regions), ~_mostly_in(people, regions)

    def index(kept: int) -> float:
        rows, columns = linear_sum_assignment(iou[:kept], maximize=True)
        pairs = iou[rows, columns] > 0
        rows, columns = rows[pairs], columns[pairs]
        counted = boxes_count[:kept].sum() + people_count.sum()
        # Matched pairs always count, also inside an ignored region.
        counted += (~boxes_count[rows]).sum() + (~people_count[columns]).sum()
        return len(rows) / (counted - len(rows) + EPS) if counted else np.nan

    # The scores are descending, so a threshold keeps the first `kept` detections.
    kept, inverse = np.unique(np.searchsorted(-scores, -THRESHOLDS), return_inverse=True)
    return np.array([index(k) for k in kept])[inverse]


class CrowdHumanEvaluator(DatasetEvaluator):
    """AP, MR^-2 and JI of the detections of class 0, in percent.

    As in the released code:

    * Only the 500 best detections of an image with a score above 0.05 are used, after the
      detector's own NMS (released: IoU 0.6). Coordinates are rounded to 0.1 pixel and scores to
      0.00001.
    * All boxes are clipped to the image, also the boxes of people.
    * AP and MR^-2 count all boxes of the .odgt file, including boxes with a width or height <= 0,
      which no detection can match. JI leaves these out, and rounds people to 0.1 pixel.

    Differences from the released code: images without boxes are accepted, and no file is written.
    Without any people, AP and MR^-2 are NaN. If no detections count either, JI is NaN, too.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        *,
        max_dets_per_image: int = 500,
        score_thresh: float = 0.05,
    ):
        """
        Args:
            dataset_name: "crowdhuman_val", or another dataset with `odgt_file` in its metadata
                whose image ids are the line numbers of that file, from 0.
            distributed: gather the detections of all processes. If False, each process evaluates
                its own detections only.
            max_dets_per_image: the best detections are kept. The detector's own limit must not be
                lower.
            score_thresh: detections above it are kept. The detector's own must not be higher.

        Raises:
            ValueError: the dataset has no `odgt_file`.
        """
        odgt_file = MetadataCatalog.get(dataset_name).get("odgt_file")
        if odgt_file is None:
            raise ValueError(
                f"dataset_name: expected a dataset with odgt_file in its metadata, such as "
                f"crowdhuman_val, found {dataset_name!r}. Use COCOEvaluator, or register it as "
                f"d2kd.data.crowdhuman does."
            )
        self._distributed = distributed
        self._max_dets_per_image, self._score_thresh = max_dets_per_image, score_thresh
        images = DatasetCatalog.get(dataset_name)  # the .odgt file has no image sizes
        self._sizes = {x["image_id"]: (x["width"], x["height"]) for x in images}
        self._people = read_odgt(odgt_file)
        self.reset()

    def reset(self) -> None:
        self._predictions: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: a batch; each image has its "image_id".
            outputs: for each image "instances" with pred_boxes, scores and pred_classes.
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            scores = instances.scores.numpy().astype(float)
            people = instances.pred_classes.numpy() == 0
            kept = np.flatnonzero(people & (scores > self._score_thresh))
            kept = kept[np.argsort(-scores[kept], kind="stable")][: self._max_dets_per_image]
            boxes = instances.pred_boxes.tensor.numpy().astype(float)[kept]
            boxes[:, 2:] -= boxes[:, :2]
            self._predictions[image["image_id"]] = boxes.round(1), scores[kept].round(5)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """
        Args:
            img_ids: the images to evaluate on; default: all. Images without detections count.

        Returns:
            {"bbox": {"AP", "MR", "JI"}} in percent in the main process; {} in other processes.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = {image: x for part in parts for image, x in part.items()}
        images = sorted(self._sizes if img_ids is None else set(img_ids))
        nothing = np.zeros((0, 4)), np.zeros(0)
        all_scores, all_hits, indices, num_people = [np.zeros(0)], [np.zeros(0)], [], 0
        for image in images:
            (boxes, scores), size = predictions.get(image, nothing), self._sizes[image]
            _, people, ignored = self._people[image]
            boxes = _corners(boxes, *size)
            all_scores.append(scores)
            all_hits.append(match(boxes, _corners(people, *size), ignored))
            num_people += int((~ignored).sum())
            solid = (people[:, 2:] > 0).all(axis=1)
            people = _corners(people[solid].round(1), *size)
            indices.append(jaccard_indices(boxes, scores, people, ignored[solid]))
        ap, miss_rate = ap_and_miss_rate(
            np.concatenate(all_scores), np.concatenate(all_hits), num_people, len(images)
        )
        table = np.array(indices).reshape(-1, len(THRESHOLDS))
        counted = (~np.isnan(table)).sum(axis=0)
        means = np.where(counted > 0, np.nansum(table, axis=0) / counted.clip(min=1), np.nan)
        jaccard = float(np.nan if np.isnan(means).all() else np.nanmax(means))
        logger.info("JI at scores above 0.0, 0.1 ... 0.9: %s", (100 * means).round(1))
        return {"bbox": {"AP": 100 * ap, "MR": 100 * miss_rate, "JI": 100 * jaccard}}
