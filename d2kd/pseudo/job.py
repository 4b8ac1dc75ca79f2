"""Labelling from a config to labels and their report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils import comm

from ..data.manifest import Manifest
from ..matching import Truth
from .cache import RawCache
from .categories import CategoryMap
from .coco import write_labels
from .fingerprint import plain
from .fuse import Fusion
from .label import label, open_cache
from .merge import FusedLabels, Predictions, fit_bars
from .quality.report import write_report
from .quality.truth import TrueBoxes, read_truth
from .teachers import class_names
from .thresholds import FixedBars

__all__ = ["NEEDED", "OPTIONAL", "Job"]

logger = logging.getLogger(__name__)

NEEDED = dict(
    images="dict(dataset=NAME) or dict(folder=PATH)",
    classes="the student's: names, or a registered dataset that has them",
    teachers="dict(NAME=L(LabelTeacher)(...), ...)",
    output="folder of all that is written",
)
OPTIONAL = dict(
    bars=None,  # from which score on a box is a label (FixedBars); a teacher may have its own
    fusion=None,  # how boxes of several teachers become one (Fusion)
    fit=None,  # dict(dataset=NAME, images=2000): labelled images, for bars that are fitted on them
    truth=None,  # dataset or COCO file with the true boxes of the images, for the report
    unit_size=500,  # images that are labelled and stored as one
    max_rejected=0.01,  # share of the images that may be unreadable
    num_workers=4,  # processes that read images, for each that labels
    report_images=20000,  # at most so many are looked at to fit bars and for the report
    samples=12,  # images that are drawn for the report
    seed=0,  # of their choice, and of those that are looked at
)


class Job:
    """The `labels` of a config, built and checked; see `NEEDED` and `OPTIONAL`.

    Args:
        path: of a LazyConfig.
        overrides: as for training: "labels.unit_size=100".

    Raises:
        ValueError: fields are missing, unknown or do not fit together.
    """

    def __init__(self, path: str, overrides: Sequence[str] = ()):
        node = LazyConfig.apply_overrides(LazyConfig.load(path), list(overrides)).get("labels", {})
        missing = [f"{k} ({says})" for k, says in NEEDED.items() if not node.get(k)]
        unknown = [k for k in node if k not in {**NEEDED, **OPTIONAL}]
        if missing or unknown:
            raise ValueError(
                f"{path}: expected `labels` with {', '.join(NEEDED)} and perhaps "
                f"{', '.join(OPTIONAL)}; missing are {missing}, unknown are {unknown}"
            )
        vars(self).update({**OPTIONAL, **{k: instantiate(node[k]) for k in node}})
        self.teachers = {name: instantiate(teacher) for name, teacher in node.teachers.items()}
        self.output, self.classes = Path(self.output), class_names(self.classes)
        self.fusion = self.fusion or Fusion()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._check_parts()
        kinds = dict(dataset=Manifest.from_dataset, folder=Manifest.from_folder)
        given = {k: v for k, v in self.images.items() if v is not None}
        if len(given) != 1 or not given.keys() <= kinds.keys():
            raise ValueError(f"labels.images: expected {NEEDED['images']}, found {self.images}")
        self.manifest = next(kinds[kind](place) for kind, place in given.items())
        teachers = self.teachers.values()
        self.maps = [CategoryMap(self.classes, t.categories, t.classes) for t in teachers]
        self.bars = [t.bars or self.bars or FixedBars() for t in teachers]
        for bars, categories in zip(self.bars, self.maps, strict=True):
            if isinstance(bars, FixedBars):
                bars.fit((), None, categories.owned)  # checks its numbers
            if getattr(bars, "needs_truths", False) and not self.fit:
                raise ValueError(
                    f"labels.bars: {type(bars).__name__} are fitted on labelled images, but none "
                    f"are given. Set labels.fit.dataset to a registered dataset with the student's "
                    f"classes."
                )
        self.fusion.check(self.classes)
        settings = dict(classes=self.classes, maps=self.maps, bars=self.bars, fusion=self.fusion)
        names = ("fit", "unit_size", "report_images", "seed")
        settings |= {name: getattr(self, name) for name in names}
        made_from = dict(
            teachers={name: t.settings() for name, t in self.teachers.items()},
            settings=plain(settings),
            manifest=self.manifest.digest,
        )
        self.made_from = json.loads(json.dumps(made_from))

    def _check_parts(self) -> None:
        bars = {f"labels.teachers.{name}.bars": t.bars for name, t in self.teachers.items()}
        for where, part in {"labels.bars": self.bars, **bars}.items():
            if part is not None and not hasattr(part, "fit"):
                raise ValueError(f"{where}: expected L(FixedBars)(...) or such, found {part!r}")
        if not hasattr(self.fusion, "check"):
            raise ValueError(
                f"labels.fusion: expected L(Fusion)(...) or such, found {self.fusion!r}"
            )
        fit = self.fit
        if fit is not None and not (
            isinstance(fit, Mapping) and fit.get("dataset") and fit.keys() <= {"dataset", "images"}
        ):
            raise ValueError(f"labels.fit: expected dict(dataset=NAME, images=2000), found {fit}")

    def check_output(self) -> None:
        """Leave alone labels that a student may be training on.

        Raises:
            ValueError: there are labels that were made by other settings.
        """
        beside = self.output / "provenance.json"
        if not beside.exists():
            return
        before = json.loads(beside.read_text()).get("made_from", {})
        if other := [k for k, value in self.made_from.items() if before.get(k) != value]:
            raise ValueError(
                f"labels.output: expected a folder without labels, or with labels of the same "
                f"settings, found {self.output / 'labels.json'} made with other {', '.join(other)}."
                f" Set another labels.output, or add --overwrite; raw predictions are used again."
            )

    def label(self, manifest: Manifest) -> list[RawCache]:
        """What is missing, with one teacher after the other."""
        caches = []
        for name, teacher in self.teachers.items():
            root = self.output / "raw" / name
            cache = open_cache(root, manifest, teacher, self.unit_size, self.device)
            options = dict(num_workers=self.num_workers, device=self.device, name=name)
            share = self.max_rejected
            done = label(manifest, teacher, cache, max_rejected=share, **options)
            logger.info("%s: %d images, %.1f a second", name, *done.values())
            teacher.to("cpu")
            caches.append(cache)
        return caches

    def make(self) -> None:
        """Label, and, in the main process, write labels and report."""
        finished = self.output / ".finished"  # to wait for a file knows no time-out
        main = comm.is_main_process()
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            if main:
                finished.unlink(missing_ok=True)
        except OSError as e:
            raise PermissionError(
                f"labels.output: expected a folder that can be written, found {self.output} ({e})."
            ) from e
        some = truth = fitted_on = None
        if self.fit:
            some = Manifest.from_dataset(self.fit["dataset"], "labels.fit.dataset")
            some = some.sample(self.fit.get("images", 2000), self.seed)
        if main:  # mistakes in these are not to be found after days
            truth, fitted_on = self.read_truths(some)
        comm.synchronize()
        caches = self.label(self.manifest)
        labelled = self.label(some) if some else None
        while not main and not finished.exists():
            time.sleep(1)
        if main:
            predictions = Predictions(self.manifest, caches, self.maps)
            labelled = Predictions(some, labelled, self.maps) if some else None
            self.write(predictions, truth, labelled, fitted_on)
            finished.touch()

    def read_truths(self, some: Manifest | None) -> tuple[TrueBoxes | None, TrueBoxes | None]:
        """True boxes for the report, and of the labelled images that bars are fitted on.

        Raises:
            ValueError: they are not there, are of other images, or lack classes.
        """
        truth = fitted_on = None
        if self.truth:
            truth = read_truth(self.truth, self.classes)
            truth.of(self.manifest.images)
        if some:
            fitted_on = read_truth(self.fit["dataset"], self.classes)
            fitted_on.of(some.images)
            lacking = np.any([m.owned for m in self.maps], 0) & ~fitted_on.known
            if lacking.any():
                raise ValueError(
                    f"labels.fit.dataset: expected labelled images of all classes that teachers "
                    f"know, {self.fit['dataset']!r} does not know "
                    f"{[name for name, k in zip(self.classes, lacking, strict=True) if k]}"
                )
        return truth, fitted_on

    def write(
        self,
        predictions: Predictions,
        truth: TrueBoxes | None = None,
        labelled: Predictions | None = None,
        fitted_on: TrueBoxes | None = None,
    ) -> None:
        """Fuse what was predicted; write labels, their provenance and the report.

        Args:
            truth, fitted_on: from `read_truths`.
            labelled: predictions for the images that bars are fitted on.
        """
        truths = None
        if labelled:
            truths = {
                i: Truth(t.boxes[~t.crowds], t.classes[~t.crowds])
                for i, t in fitted_on.of(labelled.images).items()
            }
        chosen = {i.image_id for i in self.manifest.sample(self.report_images, self.seed)}
        chosen = [i for i in predictions.images if i.image_id in chosen]
        bars = fit_bars(self.bars, predictions, chosen, labelled, truths)
        for (name, teacher), b in zip(self.teachers.items(), bars, strict=True):
            if b.low.min() < teacher.score_floor:
                logger.warning(
                    "%s: its lowest bar is %.3f, but what scores less than score_floor=%g was not "
                    "kept",
                    name,
                    b.low.min(),
                    teacher.score_floor,
                )
        table = {
            name: dict(high=b.high.tolist(), low=b.low.tolist())
            for name, b in zip(self.teachers, bars, strict=True)
        }
        labels, owned = FusedLabels(predictions, bars, self.fusion), predictions.owned.any(0)
        annotated = None if owned.all() else dict.fromkeys(labels, owned)
        said = write_labels(
            self.output / "labels.json",
            predictions.images,
            labels,
            self.classes,
            dict(self.made_from, bars=table),
            annotated=annotated,
            rejected=predictions.rejected,
            parents=predictions.files(),
            run=dict(
                images=self.manifest.name,
                models={name: t.source for name, t in self.teachers.items()},
                weights={name: t.weights for name, t in self.teachers.items()},
            ),
        )
        report = write_report(
            self.output,
            chosen,
            {i.image_id: labels[i.image_id] for i in chosen},  # each is asked for more than once
            list(self.classes),
            list(self.teachers),
            owned=predictions.owned,
            annotated=annotated,
            truth=truth,
            labelled=fitted_on,
            samples=self.samples,
            seed=self.seed,
        )
        for warning in report["warnings"]:
            logger.warning("report: %s", warning)
        counts = said["counts"]
        logger.info(
            "%s: %d images, %d boxes, %d regions to ignore; see report.md beside it",
            self.output / "labels.json",
            *(counts[name] for name in ("images", "boxes", "ignore_regions")),
        )
