"""Check that an evaluator has the test data and knows all classes, and rehearse it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from omegaconf import DictConfig, OmegaConf

from ..config import dataset_names
from ..data.audit import REFUSED, WARNING, CocoSource, audit_coco, coco_source
from ..evaluation.rehearsal import evaluator_nodes, is_certain, rehearse
from ..lazy import resolve_target
from ..student_files import metric_problem
from .errors import errors_of_loading
from .models import num_classes, student_classes
from .report import Audit, repair_if_needed

__all__ = ["check_evaluator"]

COMPARED = 2000  # images of the test set that are compared with the evaluator's


def check_evaluator(
    audit: Audit,
    cfg: DictConfig,
    records: Sequence[Mapping[str, Any]] | None,
    evaluated: Sequence[str],
) -> None:
    """Check `dataloader.evaluator` of a config.

    Args:
        audit: gets what is found.
        cfg: the config.
        records: the test set, where it is loaded already.
        evaluated: see `audit_config`.
    """
    best_metric = None if evaluated else cfg.train.get("best_metric")
    if best_metric and cfg.dataloader.get("evaluator") is None:
        audit.add(
            REFUSED,
            f"dataloader.evaluator: expected an evaluator that gives train.best_metric "
            f"({best_metric}), found none. Set one, or set train.best_metric=''.",
        )
        return
    nodes = evaluator_nodes(cfg.dataloader.get("evaluator"))
    test = OmegaConf.select(cfg, "dataloader.test.dataset")
    if not nodes or not isinstance(test, DictConfig):
        return
    tested = list(dict.fromkeys(name for _, name in dataset_names(test)))
    if not evaluated:
        checked = OmegaConf.select(cfg, "train.teacher_check.images")
        evaluated = ("student", "teacher") if checked else ("student",)
    models = []
    for role in evaluated:
        if role == "student":
            models.append(student_classes(cfg))
        else:
            teacher, setup = (
                OmegaConf.select(cfg, f"model.teacher.{field}") for field in ("model", "setup")
            )
            models.append(num_classes(teacher, "model.teacher", setup))
    metrics: list[list[str]] = []  # of each rehearsal
    for node in nodes:
        name = node.get("dataset_name")
        name = name if isinstance(name, str) and name in DatasetCatalog.list() else None
        if name and tested and name not in tested:
            with errors_of_loading("dataloader.evaluator.dataset_name", name):
                records = _load(test, tested) if records is None else records
                _check_same_data(audit, name, tested, records)
        counts_all = _is_kind(resolve_target(node), COCOEvaluator)
        if name and records is not None and counts_all and not audit.refused:
            _count_untested(audit, name, records)
        if name:
            _repair_table_of_function(audit, name, node)
            _check_output_folder(audit, name, node)
        if audit.refused:
            return
        for place, number in models:
            if name and number and not _check_known_classes(audit, node, name, place, number):
                continue
            records = _load(test, tested) if records is None else records
            if not isinstance(records, Sequence):
                return
            # A config may not say the number of classes. Every detector has the first one.
            error, names = rehearse(node, records, number or 1)
            metrics.append(names)
            if error:
                what = f"{number} classes ({place})" if number else "the first class"
                audit.add(
                    REFUSED if is_certain(node, error) else WARNING,
                    f"dataloader.evaluator: expected an evaluator that takes detections of {what}, "
                    f"found {error}",
                )

    # Without `tasks`, a COCOEvaluator gives these if the detections have masks or keypoints.
    by_detections = str(best_metric).startswith(("segm/", "keypoints/")) and not all(
        node.get("tasks") for node in nodes
    )
    if best_metric and metrics and all(metrics) and not audit.refused and not by_detections:
        problem = metric_problem(best_metric, itertools.chain.from_iterable(metrics))
        if problem:
            audit.add(REFUSED if all(map(is_certain, nodes)) else WARNING, problem)


def _load(test: DictConfig, names: Sequence[str]) -> Any:
    place = "dataloader.test.dataset"
    with errors_of_loading(place, ", ".join(names) or place):
        return instantiate(test)


def _check_known_classes(
    audit: Audit, node: DictConfig, name: str, place: str, number: int
) -> bool:
    """Check that COCOEvaluator knows all classes of a model. Returns whether to rehearse it."""
    if not _is_kind(resolve_target(node), COCOEvaluator):
        return True
    classes = next((s.classes for s, _ in audit.sets if s.name == name), None)
    classes = classes or MetadataCatalog.get(name).get("thing_classes", None)
    if classes is None or number <= len(classes):
        return True
    found = f"the {_count(classes)} of {name!r}, which the evaluator knows, found {number}"
    mapped = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", None)
    if coco_source(name) is None and mapped is None:
        audit.add(WARNING, f"{place}: expected {found}. Detections of other classes do not count.")
        return True
    audit.add(
        REFUSED,
        f"{place}: expected {found} as num_classes. Detectron2's evaluator would stop at the first "
        f"detection of another class. {_missing_classes(audit, classes, number)}Give the test set "
        f"the same `categories` as the training set; a class may have no box. Or set num_classes "
        f"to {len(classes)}.",
    )
    return False


def _count(classes: Sequence[str]) -> str:
    return f"{len(classes)} class{'' if len(classes) == 1 else 'es'}"


def _missing_classes(audit: Audit, classes: Sequence[str], number: int) -> str:
    """A sentence with what the training set has and these classes lack; "" if it is not known."""
    trained = [s for s, role in audit.sets if role == "train" and len(s.classes or ()) == number]
    missing = [repr(x) for s in trained[:1] for x in s.classes or () if x not in classes]
    more = ", ..." if missing[10:] else ""
    return f"{trained[0].name!r} also has {', '.join(missing[:10])}{more}. " if missing else ""


def _check_same_data(
    audit: Audit, name: str, tested: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse an evaluator whose ground truth differs from what the test loader loads.

    Another name is fine for the same images and boxes, such as a part of the evaluator's set.
    """
    files = {MetadataCatalog.get(n).get("json_file", None) for n in (name, *tested)}
    if len(files) == 1 and None not in files:
        return
    truth = {x.get("image_id"): x for x in DatasetCatalog.get(name)}
    for record in records[:COMPARED]:
        other = truth.get(record.get("image_id"))
        if other is None or not _is_same(record, other):
            found = f"{name!r}, whose image {record.get('image_id')!r} "
            found += "does not exist" if other is None else "has another file or other boxes"
            audit.add(
                REFUSED,
                f"dataloader.evaluator.dataset_name: expected {', '.join(tested)}, the data that "
                f"dataloader.test loads, found {found}. Give the evaluator and the test loader the "
                f"same name.",
            )
            return


def _count_untested(audit: Audit, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Warn of images with boxes that the evaluator knows and the test loader does not load."""
    tested = {x.get("image_id") for x in records}
    truth = [x for x in DatasetCatalog.get(name) if x.get("annotations")]
    if untested := [x for x in truth if x.get("image_id") not in tested]:
        audit.add(
            WARNING,
            f"dataloader.evaluator.dataset_name: {len(untested)} of {len(truth)} images with boxes "
            f"in {name!r} are not loaded by dataloader.test, such as "
            f"{untested[0].get('file_name')}. Detectron2 counts all their boxes as not found, "
            f"which lowers the AP. Register the tested images as a set of their own.",
        )


def _is_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two dicts have the same boxes, or the same file where one has none."""
    rows = [x.get("annotations") or [] for x in (a, b)]
    if not all(rows):
        paths = [os.path.abspath(str(x.get("file_name"))) for x in (a, b)]
        return paths[0] == paths[1] and bool(rows[0]) == bool(rows[1])
    boxes = [
        sorted((int(x["category_id"]), *map(float, x["bbox"])) for x in annotations)
        for annotations in rows
    ]
    return len(boxes[0]) == len(boxes[1]) and np.allclose(boxes[0], boxes[1], atol=0.01)


def _repair_table_of_function(audit: Audit, name: str, node: DictConfig) -> None:
    """Repair the COCO file that the evaluator reads of a set with a loading function of its own."""
    target = resolve_target(node)
    path = MetadataCatalog.get(name).get("json_file", None)
    if path is None or name in audit.copies or not _is_kind(target, COCOEvaluator):
        return
    if coco_source(name) is None and os.path.isfile(path):
        root = str(MetadataCatalog.get(name).get("image_root", ""))
        audited = audit_coco(CocoSource(str(path), root), name, look_at_images=False)
        audit.add_defects(audited, audited.table_defects, "test")
        repair_if_needed(audit, audited, evaluated=True)


def _check_output_folder(audit: Audit, name: str, node: DictConfig) -> None:
    """Check that COCOEvaluator can write the COCO file of a set that has none."""
    if not _is_kind(resolve_target(node), COCOEvaluator) or node.get("output_dir"):
        return
    if MetadataCatalog.get(name).get("json_file", None) is None:
        audit.add(
            REFUSED,
            f"dataloader.evaluator.output_dir: expected a folder, because {name!r} has no COCO "
            f"file and Detectron2's evaluator writes one, found none. Set it, for example to the "
            f"folder of train.output_dir.",
        )


def _is_kind(target: Any, kind: type) -> bool:
    return isinstance(target, type) and issubclass(target, kind)
