"""Run all steps of labeling: teachers, thresholds, fusion, labels, report."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.utils import comm

from ..data.manifest import EMPTY, MISSING, Manifest
from ..matching import GroundTruth
from .cache import RawCache
from .coco import write_labels
from .fuse import Fusion
from .job import LabelingJob
from .label import label_images, open_cache
from .predictions import FusedLabels, Predictions, fit_thresholds
from .quality.report import write_report
from .quality.truth import TrueBoxes, read_truth
from .thresholds import Thresholds

__all__ = ["read_truths", "run_labeling", "run_teachers", "write_results"]

logger = logging.getLogger(__name__)


def run_labeling(job: LabelingJob) -> None:
    """Label all images of a job. The main process then writes labels and report.

    All processes of a distributed run call this. The others wait for the main process.
    """
    output = Path(job.output)
    # Other processes wait for this file, not for a collective: those time out after minutes.
    finished = output / ".finished"
    is_main = comm.is_main_process()
    try:
        output.mkdir(parents=True, exist_ok=True)
        if is_main:
            finished.unlink(missing_ok=True)
    except OSError as e:
        raise PermissionError(
            f"labels.output: expected a folder that can be written, found {output} ({e})."
        ) from e
    fit_images = truth = fit_truth = None
    if job.fit:
        fit_images = Manifest.from_dataset(job.fit["dataset"], "labels.fit.dataset")
        fit_images = fit_images.sample(job.fit.get("images", 2000), job.seed)
    if is_main:  # read them now: a mistake in them must not be found after days of labeling
        truth, fit_truth = read_truths(job, fit_images)
    comm.synchronize()
    caches = run_teachers(job, job.manifest)
    fit_caches = run_teachers(job, fit_images) if fit_images else []
    while not is_main and not finished.exists():
        time.sleep(1)
    if is_main:
        predictions = Predictions(job.manifest, caches, job.maps)
        labeled = Predictions(fit_images, fit_caches, job.maps) if fit_images else None
        write_results(job, predictions, truth, labeled, fit_truth)
        finished.touch()


def run_teachers(job: LabelingJob, manifest: Manifest) -> list[RawCache]:
    """Label the units that are missing, with one teacher after the other.

    Returns:
        the complete cache of each teacher.
    """
    caches = []
    for name, teacher in job.teachers.items():
        folder = Path(job.output, "raw", name)
        cache = open_cache(folder, manifest, teacher, job.unit_size, job.device)
        done = label_images(
            manifest,
            teacher,
            cache,
            max_rejected=job.max_rejected,
            num_workers=job.num_workers,
            device=job.device,
            name=name,
        )
        logger.info("%s: %d images, %.1f per second", name, *done.values())
        teacher.to("cpu")
        caches.append(cache)
    return caches


def read_truths(
    job: LabelingJob, fit_images: Manifest | None
) -> tuple[TrueBoxes | None, TrueBoxes | None]:
    """Ground truth for the report, and of the images that thresholds are fitted on.

    Raises:
        ValueError: ground truth does not exist, is of other images, or lacks classes.
    """
    truth = fit_truth = None
    if job.truth:
        truth = read_truth(job.truth, job.classes)
        truth.select_images(job.manifest.images)
    if job.fit and fit_images:
        fit_truth = read_truth(job.fit["dataset"], job.classes)
        fit_truth.select_images(fit_images.images)
        lacking = np.any([m.owned for m in job.maps], 0) & ~fit_truth.known
        if lacking.any():
            raise ValueError(
                f"labels.fit.dataset: expected labeled images of all classes that teachers "
                f"know, found that {job.fit['dataset']!r} does not know "
                f"{[name for name, k in zip(job.classes, lacking, strict=True) if k]}"
            )
    return truth, fit_truth


def write_results(
    job: LabelingJob,
    predictions: Predictions,
    truth: TrueBoxes | None = None,
    labeled: Predictions | None = None,
    fit_truth: TrueBoxes | None = None,
) -> None:
    """Fit thresholds, fuse the predictions, and write labels, provenance and report.

    Args:
        predictions: for the images to label.
        truth, fit_truth: from `read_truths`.
        labeled: predictions for the images that thresholds are fitted on.
    """
    output = Path(job.output)
    assert isinstance(job.fusion, Fusion)  # __post_init__ has set it
    truths = None
    if labeled and fit_truth:
        truths = {
            i: GroundTruth(t.boxes[~t.crowds], t.classes[~t.crowds])
            for i, t in fit_truth.select_images(labeled.images).items()
        }
    chosen_ids = {i.image_id for i in job.manifest.sample(job.report_images, job.seed)}
    chosen = [i for i in predictions.images if i.image_id in chosen_ids]
    thresholds = fit_thresholds(job.rules, predictions, chosen, labeled, truths)
    _warn_of_floors(job, thresholds)
    table = {
        name: dict(high=t.high.tolist(), low=t.low.tolist())
        for name, t in zip(job.teachers, thresholds, strict=True)
    }
    labels = FusedLabels(predictions, thresholds, job.fusion)
    owned = np.any(predictions.owned, axis=0, keepdims=True)[0]
    annotated = None if owned.all() else dict.fromkeys(labels, owned)
    provenance = write_labels(
        output / "labels.json",
        predictions.images,
        labels,
        job.classes,
        dict(job.made_from, thresholds=table),
        annotated=annotated,
        rejected=predictions.rejected,
        parents=predictions.files(),
        run=dict(
            images=job.manifest.name,
            models={name: t.source for name, t in job.teachers.items()},
            weights={name: t.weights for name, t in job.teachers.items()},
            other_files=dict(job.manifest.left_out),
        ),
    )
    report = write_report(
        output,
        chosen,
        {i.image_id: labels[i.image_id] for i in chosen},  # the report reads each repeatedly
        list(job.classes),
        list(job.teachers),
        owned=predictions.owned,
        annotated=annotated,
        truth=truth,
        reference=fit_truth,
        left_out=_left_out(job.manifest, predictions.rejected),
        samples=job.samples,
        seed=job.seed,
    )
    for warning in report["warnings"]:
        logger.warning("report: %s", warning)
    counts = provenance["counts"]
    logger.info(
        "%s: %d images, %d boxes, %d regions to ignore; see report.md next to it",
        output / "labels.json",
        *(counts[name] for name in ("images", "boxes", "ignore_regions")),
    )


def _left_out(manifest: Manifest, rejected: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Reason -> number of files that could not be labeled, for the report."""
    counts = Counter(
        reason if reason in (MISSING, EMPTY) else "the file cannot be read"
        for _, reason in rejected
    )
    return dict(counts) | {f"no image by its suffix: {s}": n for s, n in manifest.left_out}


def _warn_of_floors(job: LabelingJob, thresholds: Sequence[Thresholds]) -> None:
    for (name, teacher), fitted in zip(job.teachers.items(), thresholds, strict=True):
        if fitted.low.min() < teacher.score_floor:
            logger.warning(
                "%s: its lowest threshold is %.3f, but boxes that score less than "
                "score_floor=%g were not kept",
                name,
                fitted.low.min(),
                teacher.score_floor,
            )
