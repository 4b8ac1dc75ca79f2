"""What to label, by which teachers and how: the `labels` of a config, checked.

`d2kd.pseudo.pipeline` runs the job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from ..checks import check_complete, check_nodes, nearest
from ..data.manifest import Manifest
from ..lazy import apply_overrides, load_lazy_config
from ..values import check_number
from .categories import CategoryMap
from .fingerprint import plain
from .fuse import Fusion
from .provenance import SCHEMA
from .teachers import LabelTeacher, class_names
from .thresholds import FixedThresholds, ThresholdRule

__all__ = ["LabelingJob"]


@dataclass(eq=False)
class LabelingJob:
    """Everything that `labels` of a config says. This is the reference of its fields.

    Args:
        images: the images to label: `dict(dataset=NAME)` for a dataset that is registered with
            Detectron2, or `dict(folder=PATH)` for all images below a folder.
        classes: the student's classes: a list of names, or a registered dataset that has them. They
            must be in the order in which the student numbers them.
        teachers: name -> `LabelTeacher`. The name is yours; files and reports contain it.
        output: folder for everything that is written: labels.json, provenance.json, report.md,
            report.json, samples.png, and raw/ with the raw predictions.
        thresholds: which scores make a box a label; see `d2kd.pseudo.thresholds`. A teacher may
            have its own. Default: `FixedThresholds()`.
        fusion: how the boxes of several teachers become one set. Default: `Fusion()`.
        fit: `dict(dataset=NAME, images=2000)`, labeled images on which thresholds are fitted, for
            the rules that need them. `images` is how many of them to use at most.
        truth: a dataset or a COCO file with ground truth of the images or of a part of them. The
            report then has AP, precision and recall. It never changes the labels.
        unit_size: number of images that are labeled and stored together.
        max_rejected: share of the images that may be unreadable, in [0, 1]. More of them stop the
            run.
        num_workers: number of processes that read images, for each labeling process. All processes
            together start at most one for each CPU.
        report_images: at most this many images are used for the report and to fit thresholds.
        samples: number of images that are drawn for the report; 0 for no picture.
        seed: for the random choice of these images.

    Attributes:
        manifest: the images, listed.
        maps: one `CategoryMap` of each teacher.
        rules: one rule for thresholds of each teacher.
        made_from: all settings that the labels depend on, as JSON, for provenance.json.
        device: where teachers run: "cuda" if there is a GPU, else "cpu".

    Raises:
        ValueError: fields are missing, unknown, impossible, or do not fit together.
    """

    images: Mapping[str, str | None] = field(
        metadata={"example": "dict(dataset=NAME) or dict(folder=PATH)"}
    )
    classes: Sequence[str] | str = field(
        metadata={"example": "the student's: names, or a registered dataset"}
    )
    teachers: Mapping[str, LabelTeacher] = field(
        metadata={"example": "dict(NAME=L(LabelTeacher)(...), ...)"}
    )
    output: Path | str = field(metadata={"example": "folder for everything that is written"})
    thresholds: ThresholdRule | None = None
    fusion: Fusion | None = None
    fit: Mapping[str, Any] | None = None
    truth: str | None = None
    unit_size: int = 500
    max_rejected: float = 0.01
    num_workers: int = 4
    report_images: int = 20000
    samples: int = 12
    seed: int = 0

    manifest: Manifest = field(init=False)
    maps: list[CategoryMap] = field(init=False)
    rules: list[ThresholdRule] = field(init=False)
    made_from: dict[str, Any] = field(init=False)
    device: str = field(init=False)

    def __post_init__(self):
        self._check_numbers()
        self.output, self.classes = Path(self.output), class_names(self.classes)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._check_parts()
        self.fusion = self.fusion or Fusion()
        given = {k: v for k, v in self.images.items() if v is not None}
        if len(given) != 1 or not given.keys() <= {"dataset", "folder"}:
            raise ValueError(
                f"labels.images: expected dict(dataset=NAME) or dict(folder=PATH), found "
                f"{self.images}"
            )
        if "dataset" in given:
            self.manifest = Manifest.from_dataset(given["dataset"])
        else:
            self.manifest = Manifest.from_folder(given["folder"])
        teachers = self.teachers.values()
        self.maps = [CategoryMap(self.classes, t.categories, t.classes) for t in teachers]
        self.rules = [t.thresholds or self.thresholds or FixedThresholds() for t in teachers]
        for rule, categories in zip(self.rules, self.maps, strict=True):
            if isinstance(rule, FixedThresholds):
                rule.fit((), None, categories.owned)  # checks its numbers
            if getattr(rule, "needs_truths", False) and not self.fit:
                raise ValueError(
                    f"labels.fit: expected labeled images, on which {type(rule).__name__} is "
                    f"fitted, found none. Set labels.fit.dataset to a registered dataset with "
                    f"the student's classes."
                )
        self.fusion.check(self.classes)
        settings = dict(
            classes=self.classes, maps=self.maps, thresholds=self.rules, fusion=self.fusion
        )
        names = ("fit", "unit_size", "report_images", "seed")
        settings |= {name: getattr(self, name) for name in names}
        made_from = dict(
            teachers={name: t.settings() for name, t in self.teachers.items()},
            settings=plain(settings),
            manifest=self.manifest.digest,
        )
        self.made_from = json.loads(json.dumps(made_from))

    @classmethod
    def from_config(cls, path: str, overrides: Sequence[str] = ()) -> LabelingJob:
        """Build a job from the `labels` of a LazyConfig.

        Args:
            path: path of the LazyConfig.
            overrides: fields to change, such as "labels.unit_size=100".

        Raises:
            ValueError: see the class.
        """
        cfg = load_lazy_config(path)
        for override in overrides:
            section = override.split("=")[0].split(".")[0].lstrip("+~")
            if section not in cfg:
                raise ValueError(
                    f"override {override!r}: expected a field of {', '.join(map(str, cfg))}, found "
                    f"{section!r}.{nearest(section, list(cfg))}"
                )
        apply_overrides(cfg, overrides)
        if "labels" not in cfg:
            found = ", ".join(map(str, cfg)) or "no section"
            raise ValueError(
                f"{path}: expected a section `labels`, which d2kd label reads, found {found}. "
                f"Configs with `model` and `train` are for d2kd train."
            )
        node = cfg.labels
        if not isinstance(node, DictConfig):
            raise ValueError(f"{path}: expected a section `labels` with fields, found {node!r}.")
        required, optional = cls.required_fields(), cls.optional_fields()
        missing = [f"{k} ({example})" for k, example in required.items() if not node.get(k)]
        unknown = [k for k in node if k not in {**required, **optional}]
        if missing or unknown:
            raise ValueError(
                f"{path}: expected `labels` with {', '.join(required)} and perhaps "
                f"{', '.join(optional)}; found others: missing are {missing}, unknown are "
                f"{unknown}. "
                f"LabelingJob explains the fields."
            )
        if not isinstance(node.teachers, DictConfig) or "_target_" in node.teachers:
            raise ValueError(
                f"labels.teachers: expected dict(NAME=L(LabelTeacher)(...), ...), found "
                f"{node.teachers!r}."
            )
        check_nodes(node, "labels")
        check_complete(node, "labels")
        values = {str(k): instantiate(node[k]) for k in node}
        values["teachers"] = {name: instantiate(teacher) for name, teacher in node.teachers.items()}
        for name, value in values.items():
            if OmegaConf.is_config(value):
                values[name] = OmegaConf.to_container(value, resolve=True)
        return cls(**values)

    @classmethod
    def required_fields(cls) -> dict[str, str]:
        """Names of the fields without a default, with an example of each."""
        return {f.name: f.metadata["example"] for f in fields(cls) if "example" in f.metadata}

    @classmethod
    def optional_fields(cls) -> dict[str, Any]:
        """Names of the other fields, with their defaults."""
        return {f.name: f.default for f in fields(cls) if f.init and f.default is not MISSING}

    def _check_numbers(self) -> None:
        for name, least in dict(unit_size=1, num_workers=0, report_images=1, samples=0).items():
            check_number(f"labels.{name}", getattr(self, name), least=least, whole=True)
        check_number("labels.max_rejected", self.max_rejected, most=1)
        check_number("labels.seed", self.seed, most=2**32 - 1, whole=True)

    def _check_parts(self) -> None:
        rules = {f"labels.teachers.{k}.thresholds": t.thresholds for k, t in self.teachers.items()}
        for name, rule in {"labels.thresholds": self.thresholds, **rules}.items():
            if rule is not None and not hasattr(rule, "fit"):
                raise ValueError(
                    f"{name}: expected L(FixedThresholds)(...) or another rule, found {rule!r}"
                )
        if self.fusion is not None and not hasattr(self.fusion, "check"):
            raise ValueError(f"labels.fusion: expected L(Fusion)(...), found {self.fusion!r}")
        fit = self.fit
        if fit is not None and not (
            isinstance(fit, Mapping) and fit.get("dataset") and fit.keys() <= {"dataset", "images"}
        ):
            raise ValueError(f"labels.fit: expected dict(dataset=NAME, images=2000), found {fit}")
        if fit is not None:
            check_number("labels.fit.images", fit.get("images", 1), least=1, whole=True)
        for name, teacher in self.teachers.items():
            if not isinstance(teacher, LabelTeacher):
                raise ValueError(
                    f"labels.teachers.{name}: expected L(LabelTeacher)(...), found {teacher!r}."
                )

    def check_output(self) -> None:
        """Refuse to replace labels of other settings: a student may be training on them.

        Raises:
            ValueError: the output folder has labels that were made with other settings, or by a
                version of d2kd that recorded settings in another format.
        """
        path = Path(self.output, "provenance.json")
        if not path.exists():
            return
        recorded = json.loads(path.read_text())
        advice = (
            "Set another labels.output, or add --overwrite to replace the labels; raw predictions "
            "are used again."
        )
        if recorded.get("schema") != SCHEMA:
            raise ValueError(
                f"labels.output: expected a folder without labels, or with labels whose provenance "
                f"has format {SCHEMA}, found {Path(self.output, 'labels.json')} of format "
                f"{recorded.get('schema')}: its settings cannot be compared with these. Students "
                f"can go on training on it. {advice}"
            )
        before = recorded.get("made_from", {})
        if other := [k for k, value in self.made_from.items() if before.get(k) != value]:
            raise ValueError(
                f"labels.output: expected a folder without labels, or with labels of the same "
                f"settings, found {Path(self.output, 'labels.json')} made with other "
                f"{', '.join(other)}. {advice}"
            )
