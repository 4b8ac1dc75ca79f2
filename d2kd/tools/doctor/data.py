"""What `d2kd doctor` says about the data sets of a config."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from omegaconf import DictConfig, ListConfig, OmegaConf

from d2kd.data.layout import missing_file_hint

from .report import PROBLEM, WARNING, Report

__all__ = ["check_data", "dataset_names"]

READ = 4  # images of each data set that are read


def check_data(report: Report, cfg: DictConfig) -> dict[str, int]:
    """Report on the training set, the test set and the evaluator of a config.

    Returns:
        what was found -> its number of classes: of each registered set its listed classes, of each
        section of the loader at least the largest class number of its boxes + 1.
    """
    classes: dict[str, int] = {}
    for section in ("train", "test"):
        node = OmegaConf.select(cfg, f"dataloader.{section}")
        if node is None:
            level = PROBLEM if section == "train" else WARNING
            report.add(level, f"{section} data", f"dataloader.{section}: none in this config")
            continue
        names = list(dict.fromkeys(dataset_names(node)))
        unknown = [name for name in names if name not in DatasetCatalog.list()]
        for name in unknown:
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            report.problem(
                f"{section} data",
                f"expected a registered dataset, found {name!r}.{hint} Register it in the config "
                f"or with detectron2.data.datasets.register_coco_instances.",
            )
        if unknown:
            continue
        with report.check(f"{section} data"):
            _check_set(report, section, node, names, classes)
    _check_evaluator(report, cfg)
    return classes


def dataset_names(node: Any) -> Iterator[str]:
    """Names of the registered sets that a node of the config names, at any depth."""
    if isinstance(node, DictConfig):
        value = node.get("names")
        if isinstance(value, str):
            yield value
        elif isinstance(value, (ListConfig, list, tuple)):
            yield from map(str, value)
        for key in node:
            yield from dataset_names(OmegaConf.select(node, str(key)))
    elif isinstance(node, ListConfig):
        for item in node:
            yield from dataset_names(item)


def _check_set(
    report: Report, section: str, node: DictConfig, names: Sequence[str], classes: dict[str, int]
) -> None:
    subject = f"{section} data"
    title = ", ".join(names) or f"dataloader.{section}"
    if not node.get("dataset"):
        report.warning(subject, f"{title}: the loader has no `dataset`, so it is not checked here")
        return
    records = instantiate(node.dataset)
    if not isinstance(records, Sequence) or not all(isinstance(x, Mapping) for x in records):
        report.ok(subject, f"{title}: a data set of type {type(records).__name__}")
        return
    if not records:
        report.problem(subject, f"{title}: expected images, found none")
        return
    boxes = [a for x in records for a in x.get("annotations", ()) if not a.get("iscrowd", 0)]
    numbers = {a["category_id"] for a in boxes}
    for name in names:  # some sets know their classes only after they are loaded
        listed = MetadataCatalog.get(name).get("thing_classes", None)
        if listed is not None:
            classes[name] = len(listed)
    classes[f"boxes of {section}"] = max(numbers, default=-1) + 1
    read = _read_images(records[:READ], OmegaConf.select(node, "mapper.image_format"))
    text = (
        f"{title}: {len(records)} images, {len(boxes)} boxes of {len(numbers)} classes; "
        f"{read} images read"
    )
    if section == "train" and not boxes:
        report.problem(subject, f"{text}. Expected boxes to learn from, found none.")
    else:
        report.ok(subject, text)


def _read_images(records: Sequence[Mapping[str, Any]], image_format: str | None) -> int:
    """Read images and compare their sizes with the annotations.

    Returns:
        the number of images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or has another size.
    """
    for record in records:
        path = record["file_name"]
        if "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                f"expected an image at {path!r}, found no file. {missing_file_hint(path)}"
            )
        try:
            image = utils.read_image(path, format=image_format or "BGR")
        except Exception as error:  # whatever the image library raises
            raise ValueError(
                f"expected an image that can be read at {path!r}, found: {error}"
            ) from error
        utils.check_image_size(dict(record), image)
    return len(records)


def _check_evaluator(report: Report, cfg: DictConfig) -> None:
    evaluator = OmegaConf.select(cfg, "dataloader.evaluator")
    if evaluator is None:
        report.warning("evaluator", "dataloader.evaluator: none, so there will be no AP")
        return
    name = evaluator.get("dataset_name") if isinstance(evaluator, DictConfig) else None
    tested = list(dict.fromkeys(dataset_names(OmegaConf.select(cfg, "dataloader.test"))))
    target = evaluator.get("_target_") if isinstance(evaluator, DictConfig) else evaluator
    kind = str(getattr(target, "__name__", target)).rsplit(".", 1)[-1]
    names = [name] if isinstance(name, str) else list(name or [])
    if names and tested and names != tested:
        report.problem(
            "evaluator",
            f"dataloader.evaluator.dataset_name: expected the test data ({', '.join(tested)}), "
            f"found {', '.join(names)}. The AP would be measured on other images.",
        )
    else:
        report.ok("evaluator", f"{kind} on {', '.join(names or tested) or 'the test data'}")
