"""Audit the sets of a config, compare them, and check the evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.data.build import get_detection_dataset_dicts
from omegaconf import DictConfig, OmegaConf

from ..config import chosen_class_lists, class_lists, dataset_names
from ..data.audit import (
    NOTE,
    REFUSED,
    WARNING,
    AuditedSet,
    CocoSource,
    audit_coco,
    audit_records,
    audit_registered,
    check_numbers,
    coco_source,
    compare_classes,
)
from ..data.mappers import is_standard_mapper
from ..lazy import resolve_target
from ..random_state import keep_random_state
from ..ranks import on_main_process
from .errors import errors_of_loading
from .evaluator import check_evaluator
from .models import student_classes
from .report import Audit, repair, repair_if_needed

__all__ = ["audit_config", "audit_in_all_processes", "audit_labels", "audit_sets"]


def audit_in_all_processes(
    cfg: DictConfig, sections: Sequence[str] = ("train", "test"), evaluated: Sequence[str] = ()
) -> Sequence[Mapping[str, Any]] | None:
    """Audit in the main process, write the result to the log, and stop all processes if need be.

    Args:
        cfg, sections, evaluated: see `audit_config`.

    Returns:
        the training set, in a process that had to load it.

    Raises:
        ValueError: going on would be wrong.
    """
    audit = _in_all_processes(lambda: audit_config(cfg, sections, evaluated))
    return audit.train if audit else None


def audit_labels(labels: Mapping[str, Any]) -> None:
    """Audit the datasets that `labels` of a config names, before anything is labeled.

    `truth` and `fit` are audited whole. Of the images to label, the labels are not used; images
    that cannot be read are counted while they are labeled. All processes call this.

    Raises:
        ValueError: going on would be wrong.
    """
    images, fit = (dict(labels.get(key) or {}).get("dataset") for key in ("images", "fit"))
    truth = labels.get("truth")

    def run() -> Audit:
        audit = audit_sets({name: "truth" for name in (fit, truth) if isinstance(name, str)})
        if isinstance(images, str) and images in DatasetCatalog.list():
            with errors_of_loading("labels.images.dataset", images):
                listed = audit_registered(images, look_at_images=False)
            if listed is not None and images not in (fit, truth):
                listed.defects = listed.table_defects
                audit.add_set(listed, "labeling")
                repair_if_needed(audit, listed, evaluated=False)
        return audit

    _in_all_processes(run)


def _in_all_processes(make: Callable[[], Audit]) -> Audit | None:
    """Audit in the main process. The other processes get None, and the repaired copies."""
    audits: list[Audit] = []

    def run() -> dict[str, CocoSource]:
        audits.append(make())
        audits[0].log()
        audits[0].stop_if_refused()
        return audits[0].copies

    copies = on_main_process(run)
    if not audits:
        for name, source in copies.items():
            repair(name, source)
    return audits[0] if audits else None


def audit_config(
    cfg: DictConfig, sections: Sequence[str] = ("train", "test"), evaluated: Sequence[str] = ()
) -> Audit:
    """Audit the data of a config, and rehearse its evaluation.

    Call `d2kd.config.check_config` first: here, all datasets are expected to be registered.
    Random number generators are left as they are.

    Args:
        sections: of `dataloader`: "train" and "test", or one of them.
        evaluated: "student" and "teacher", those that will be evaluated. Default: the student, and
            the teacher where `train.teacher_check` asks for it.

    Raises:
        ValueError: a set cannot be read at all.
    """
    audit = Audit()
    with keep_random_state():  # training must not depend on the audit
        lists: dict[str, Sequence[str]] = {}
        chosen: dict[str, Sequence[str]] = {}
        loaded = {}
        for section in sections:
            node = OmegaConf.select(cfg, f"dataloader.{section}")
            if node is not None:
                loaded[section] = _audit_section(audit, node, section, lists)
        audit.train = loaded.get("train")
        used = [*sections, "evaluator"] if "test" in sections else list(sections)
        for section in used:
            for place, classes in class_lists(cfg.dataloader.get(section), section):
                lists.setdefault(place, classes)
            chosen.update(chosen_class_lists(cfg.dataloader.get(section), section))
        lists |= chosen
        refused, warnings = compare_classes(lists, chosen)
        for text in refused:
            audit.add(REFUSED, text)
        for text in warnings:
            audit.add(WARNING, text)
        _check_student_classes(audit, cfg, lists)
        if not audit.refused:
            _check_boxes(audit, cfg)
        if "test" in sections and not audit.refused:
            check_evaluator(audit, cfg, loaded.get("test"), evaluated)
    return audit


def audit_sets(sets: Mapping[str, str], look_at_images: bool = True) -> Audit:
    """Audit datasets and COCO files.

    Args:
        sets: name of a registered dataset, or path of a COCO file -> its role. Files of images of a
            COCO file without a folder are not looked at.
        look_at_images: whether to read the headers of the image files.
    """
    audit = Audit()
    for name, role in sets.items():
        if name in DatasetCatalog.list():
            with errors_of_loading(name, name):
                audited = audit_registered(name, look_at_images=look_at_images)
            if audited is not None:
                audit.add_set(audited, role)
                _warn_without_boxes(audit, audited, role)
                repair_if_needed(audit, audited, evaluated=False)
        elif os.path.isfile(name):  # the labeling job reports another name
            source = CocoSource(name, os.path.dirname(name))
            audited = audit_coco(source, name, look_at_images=False)
            audit.add_set(audited, role)
            _warn_without_boxes(audit, audited, role)
    return audit


def _warn_without_boxes(audit: Audit, audited: AuditedSet, role: str) -> None:
    if audited.images and _lack_boxes([audited]) and not audit.refused:
        use = "nothing to learn from" if role == "train" else "nothing to compare labels with"
        audit.add(
            WARNING,
            f"{audited.name}: expected boxes, found none in {_shown([audited])}. There is {use}.",
        )


def _audit_section(
    audit: Audit, node: DictConfig, section: str, lists: dict[str, Sequence[str]]
) -> Sequence[Mapping[str, Any]] | None:
    """Audit one loader. Returns its records if they had to be loaded for that."""
    dataset = node.get("dataset")
    if not isinstance(dataset, DictConfig) or "_target_" not in dataset:
        return None
    place = f"dataloader.{section}.dataset"
    # Sets that are used as they are, are audited one by one, from a cache where nothing changed.
    # Of sets that are mixed, filtered or changed, we audit what comes out.
    plain = _is_plain(dataset)
    filter_empty = section == "train" and bool(dataset.get("filter_empty", True))
    standard = is_standard_mapper(node.get("mapper"))
    names = list(dataset_names(dataset))
    for path, name in names:
        where = f"{place}.{path}"
        with errors_of_loading(where, name):
            if not plain and coco_source(name) is None:
                continue
            audited = audit_registered(name, look_at_images=plain, filter_empty=filter_empty)
        if audited is None:
            continue
        if not audited.images:
            raise ValueError(f"{where}: expected images, found none in {name!r}.")
        if plain:
            audit.add_set(audited, section, standard)
            if section == "test" and audited.empty and dataset.get("filter_empty", True):
                audit.add(
                    WARNING,
                    f"{name}: {audited.empty} of {audited.images} images have no box that is not a "
                    f"crowd, and are not tested. Detections in them do not count, which raises the "
                    f"AP. Set {place}.filter_empty=False.",
                )
        else:
            audit.add_defects(audited, audited.table_defects, section, standard)
        repair_if_needed(audit, audited, evaluated=section == "test")
        if audited.classes is not None:
            lists[f"{name!r} ({where})"] = audited.classes
    if plain or audit.refused:
        return None
    title = ", ".join(dict.fromkeys(name for _, name in names)) or place
    with errors_of_loading(place, title):
        records = instantiate(dataset)
    if not isinstance(records, Sequence) or not all(isinstance(x, Mapping) for x in records):
        audit.add(NOTE, f"{place}: a set of type {type(records).__name__} is not audited.")
        return None
    audit.add_set(audit_records(records, None, title), section, standard)
    return records


def _check_boxes(audit: Audit, cfg: DictConfig) -> None:
    """Refuse, or warn of, sets for training or test that have no box at all.

    One of several sets may have none, such as images of the background.
    """
    for section in ("train", "test"):
        sets = [s for s, role in audit.sets if role == section]
        if not _lack_boxes(sets):
            continue
        node = cfg.dataloader[section]
        found = f"dataloader.{section}.dataset: expected boxes, found none in {_shown(sets)}"
        # Of other sets, we do not know what they are for: labels by teachers, unlabeled images.
        coco = all(s.source is not None for s in sets) and _is_plain(node.dataset)
        if section == "train":
            certain = (
                coco and is_standard_mapper(node.get("mapper")) and not cfg.model.get("methods")
            )
            audit.add(
                REFUSED if certain else WARNING,
                f"{found}. The student would learn that everything is background. Look at the "
                f"annotations: do they belong to these images?",
            )
        elif coco and node.dataset.get("filter_empty", True):
            audit.add(
                REFUSED,
                f"{found}. Images without boxes are left out, so that none remains. Add the "
                f"annotations, or set dataloader.test.dataset.filter_empty=False.",
            )
        elif cfg.dataloader.get("evaluator") is not None:
            audit.add(
                WARNING,
                f"{found}. There is nothing to find in them: AP will be nan. Add the annotations.",
            )


def _lack_boxes(sets: Sequence[AuditedSet]) -> bool:
    return bool(sets) and all(s.empty == s.images for s in sets)


def _shown(sets: Sequence[AuditedSet]) -> str:
    crowds = sum(s.crowds for s in sets)
    but = f" but {crowds} crowds, which do not count" if crowds else ""
    names = ", ".join(s.name for s in sets)
    return f"the {sum(s.images for s in sets)} images of {names}{but}"


def _is_plain(dataset: DictConfig) -> bool:
    """Whether a loader uses registered sets as they are."""
    plain = resolve_target(dataset) is get_detection_dataset_dicts
    return plain and not dataset.get("min_keypoints") and not dataset.get("proposal_files")


def _check_student_classes(
    audit: Audit, cfg: DictConfig, lists: Mapping[str, Sequence[str]]
) -> None:
    field_name, number = student_classes(cfg)
    classes: dict[str, Sequence[str] | int] = dict(lists)
    for audited, role in audit.sets:
        if audited.classes is None and role == "train":
            classes[audited.name] = audited.used
    for text in check_numbers(classes, number, field_name):
        audit.add(REFUSED, text)
