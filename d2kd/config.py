"""Load a LazyConfig, and find the mistakes in it before the first iteration."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL.Image import MODES

from . import model_zoo
from .backbones import LibraryBackbone, PatchBackbone
from .backbones.weights import HOW_TO_GET
from .checks import (
    check_complete,
    check_heads,
    check_mappers,
    check_mean_teacher,
    check_models,
    check_nodes,
    check_schedule,
    check_sizes,
    check_train,
    check_weights,
    field_names,
    nearest,
    nodes,
)
from .data.partial import load_class_subset
from .lazy import apply_overrides, resolve_target
from .loading import load_student_config, mapper_format, node_input_format
from .pseudo.coco import load_pseudo_labels
from .pseudo.provenance import read_made_from
from .recipes import config_path
from .values import check_device
from .writers.libraries import check_writers

__all__ = [
    "check_config",
    "check_files",
    "chosen_class_lists",
    "class_lists",
    "dataset_names",
    "load_config",
]


# What reads a file -> its field, and how to get the file.
_READERS = {
    load_pseudo_labels: ("path", "Make the labels with `d2kd label`."),
    LibraryBackbone: ("pretrained", HOW_TO_GET),
    PatchBackbone: ("pretrained", HOW_TO_GET),
}


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a config, fill in the fields of `train` that it leaves out, and apply overrides.

    Args:
        path: path of a LazyConfig or of a yacs file, see `load_student_config`; or the name of one
            of d2kd's configs, see `d2kd.model_zoo`, or of Detectron2's.
        overrides: changes such as "train.max_iter=1000", in Hydra's syntax.

    Returns:
        the config. Missing fields of `train` have the defaults of configs/common/train.py.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: the config's code stops with an error; an override is malformed or names a field
            that is not there; or a field of `train` has an unknown name or an impossible value.
    """
    path = config_path(path)
    cfg = load_student_config(path)
    _check_sections(path, cfg)
    check_train(cfg.train)
    _fill_in(cfg.train, model_zoo.get_config("common/train.py").train)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        _check_key(cfg, key)
    apply_overrides(cfg, overrides)
    _check_sections(path, cfg)
    check_train(cfg.train)
    return cfg


def _check_sections(path: str, cfg: DictConfig, sections=("model", "dataloader", "train")) -> None:
    for section in sections:
        if section not in cfg:
            found = ", ".join(map(str, cfg)) or "no section"
            fix = " This is a config for d2kd label." if list(cfg) == ["labels"] else ""
            raise ValueError(f"{path}: expected a section {section!r}, found {found}.{fix}")
        if not isinstance(cfg[section], DictConfig):
            where = f"dataloader.{section}" if path == "dataloader" else section
            raise ValueError(f"{where}: expected a section with fields, found {cfg[section]!r}.")


def _fill_in(section: DictConfig, defaults: DictConfig) -> None:
    for key, value in defaults.items():
        if key not in section:
            section[key] = value
        elif isinstance(value, DictConfig) and isinstance(section[key], DictConfig):
            _fill_in(section[key], value)


def check_config(
    cfg: DictConfig,
    *,
    training: bool = False,
    initial_weights: bool = False,
    teacher: bool = False,
    evaluates_teacher: bool = False,
) -> None:
    """Check fields, names of datasets, channel order and device of a config.

    It finds fields that their target does not have, datasets that are not registered, images in
    another channel order than the distiller or the training expects, and a device that this machine
    does not have. Values are checked by the annotations and defaults of their targets, see
    `d2kd.checks`. `d2kd.audit` looks into the data.

    Args:
        cfg: from `load_config`.
        training: whether the sections that only a training needs must be there, and what
            `train.mean_teacher` needs.
        initial_weights: whether `train.init_checkpoint` must be there, if it is the path of a file.
        teacher: whether the files of the teacher must be there.
        evaluates_teacher: whether the teacher will be evaluated. A training does this, too, if
            `train.teacher_check` asks for it.

    Raises:
        FileNotFoundError: a config or a checkpoint is not there.
        ImportError: `train.writers` names a library that is not installed; in training only.
        ValueError: the message names the field, what was expected, what was found, and the nearest
            names.
    """
    check_train(cfg.train)
    check_nodes(cfg)
    for section in ("model", "dataloader", "optimizer", "lr_multiplier", "train"):
        # The model becomes a field of optimizer.params.
        check_complete(cfg.get(section), section, later=["optimizer.params"])
    check_heads(cfg.model)
    check_mappers(cfg)
    check_sizes(cfg)
    if training:
        check_mean_teacher(cfg)
        _check_sections("the config", cfg, ("optimizer", "lr_multiplier"))
        _check_sections("dataloader", cfg.dataloader, ("train",))
        check_writers(cfg.train.writers)
    if "lr_multiplier" in cfg:
        check_schedule(cfg, list(nodes(cfg.lr_multiplier, "lr_multiplier")))
    if initial_weights:
        check_weights("train.init_checkpoint", cfg.train.init_checkpoint)
    if teacher:
        checks = training and cfg.train.teacher_check.images > 0
        check_models(cfg.model, evaluates_teacher=evaluates_teacher or checks)
    _check_datasets(cfg)
    _check_channel_order(cfg)
    _check_test_channel_order(cfg)
    _check_formats(cfg)
    check_device("train.device", str(cfg.train.get("device", "cuda")))


def check_files(
    cfg: DictConfig, *, training: bool, initial_weights: bool, coming: Collection[str] = ()
) -> None:
    """Check that the files that a run reads are there: checkpoints, and labels by teachers.

    Files of datasets are not looked at; `d2kd.audit` does that.

    Args:
        cfg: from `load_config`.
        training: whether the run trains, and does not only evaluate.
        initial_weights: see `check_config`.
        coming: folders of runs that come first, and may make the files.

    Raises:
        FileNotFoundError: the message names the field and the file.
        ValueError: see `check_models`.
    """
    if initial_weights:
        check_weights("train.init_checkpoint", cfg.train.init_checkpoint, coming)
    check_models(cfg.model, coming=coming)
    # Of the teacher, `check_models` knows whether a backbone's own weights are needed.
    sections = ["model.student" if "student" in cfg.model else "model", "dataloader.test"]
    for section in [*sections, *["dataloader.train"] * training]:
        for where, node in nodes(OmegaConf.select(cfg, section), section):
            target = resolve_target(node) if "_target_" in node else None
            if target in _READERS:
                field, fix = _READERS[target]
                check_weights(f"{where}.{field}", node.get(field), coming, "a file", fix)


def _check_datasets(cfg: DictConfig) -> None:
    for path, name in dataset_names(cfg.get("dataloader", {})):
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"dataloader.{path}: expected a registered dataset, found {name!r}."
                f"{nearest(name, _alike(name))} Put its folder into $DETECTRON2_DATASETS "
                f"(datasets/README.md), or register it in the config with "
                f"detectron2.data.datasets.register_coco_instances. The config.yaml of a run "
                f"registers nothing: use the config that the run was started with."
            )


def _alike(name: str) -> list[str]:
    """Registered datasets whose first word is like the name's: not demo_train for my_train."""
    word = name.split("_")[0]
    return [x for x in DatasetCatalog.list() if nearest(word, [x.split("_")[0]])]


def class_lists(node, section: str) -> Iterator[tuple[str, list[str]]]:
    """Pairs of a place in the config and the ordered class names of a registered dataset.

    Some datasets know their classes only after they are loaded.

    Args:
        node: a section of `dataloader`, such as `train`.
        section: its name.
    """
    for path, name in dataset_names(node):
        classes = MetadataCatalog.get(name).get("thing_classes", None)
        if classes is not None:
            yield f"{name!r} (dataloader.{section}.{path})", list(classes)


def chosen_class_lists(node, section: str) -> Iterator[tuple[str, list[str]]]:
    """The same where classes were chosen: by a subset of classes, or for pseudo labels."""
    for path, labels in nodes(node):
        target = resolve_target(labels) if "_target_" in labels else None
        if target is load_class_subset:
            yield f"classes (dataloader.{section}.{path})", list(labels.classes)
        if target is load_pseudo_labels:
            # Reading the labels reports a missing file.
            settings = read_made_from(labels.path).get("settings", {})
            if settings.get("classes"):
                yield f"{labels.path} (dataloader.{section}.{path})", list(settings["classes"])


def _check_formats(cfg: DictConfig) -> None:
    # Pillow would say "image has wrong mode" of the first image, as if the file were damaged.
    known = ("RGB", "BGR", "L", "YUV-BT.601")
    for section in ("train", "test"):
        mapper = OmegaConf.select(cfg, f"dataloader.{section}.mapper")
        if not isinstance(mapper, DictConfig) or "_target_" not in mapper:
            continue
        found = mapper.get("image_format")
        if resolve_target(mapper) is DatasetMapper and found not in (None, *known, *MODES):
            raise ValueError(
                f"dataloader.{section}.mapper.image_format: expected one of {', '.join(known)}, "
                f"found {found!r}."
            )


def _check_test_channel_order(cfg: DictConfig) -> None:
    loaded, tested = mapper_format(cfg, "train"), mapper_format(cfg, "test")
    if None not in (loaded, tested) and loaded != tested:
        raise ValueError(
            f"dataloader.test.mapper: expected images in {loaded!r}, the channel order of the "
            f"training images, found {tested!r} (image_format, or img_format of detrex)."
        )


def _check_channel_order(cfg: DictConfig) -> None:
    # With red and blue swapped, a teacher is only a little worse, so that the losses would not show
    # the mistake.
    loaded = mapper_format(cfg, "train")
    if "student" not in cfg.model or loaded is None:
        return
    student = cfg.model.student
    if not isinstance(student, DictConfig) and not cfg.model.get("input_format"):
        raise ValueError(
            f"model.input_format: expected the channel order of the images, since the student is "
            f"built from {student!r}, found none. Set model.input_format={loaded}."
        )
    own = node_input_format(student) if isinstance(student, DictConfig) else None
    expected = cfg.model.get("input_format") or own or "BGR"
    if loaded != expected:
        raise ValueError(
            f"dataloader.train.mapper: expected images in {expected!r}, the channel order that the "
            f"distiller assumes, found {loaded!r} (image_format, or img_format of detrex). Set "
            f"model.input_format={loaded}."
        )


def _check_key(cfg: DictConfig, key: str) -> None:
    parts = key.split(".")
    for i, part in enumerate(parts):
        parent_path = ".".join(parts[:i])
        try:
            parent = OmegaConf.select(cfg, parent_path) if parent_path else cfg
        except OmegaConfBaseException:
            return  # `apply_overrides` reports it
        if not isinstance(parent, DictConfig):
            return  # a list index; Detectron2 reports other mistakes
        if part in parent:
            continue
        fields = [str(key) for key in parent]
        if "_target_" in parent:
            accepted = field_names(parent)
            if accepted is None or part in accepted:
                return
            fields = accepted
        raise ValueError(
            f"override {key}: expected a field of {parent_path or 'the config'} "
            f"({', '.join(fields)}), found {part!r}.{nearest(part, fields)}"
        )


def dataset_names(cfg) -> Iterator[tuple[str, str]]:
    """Pairs of a field that names a dataset, and the name; one pair for each name of a list."""
    for path, node in nodes(cfg):
        for key in ("names", "dataset_name"):
            value = node.get(key)
            if isinstance(value, (str, ListConfig, list, tuple)):
                for name in [value] if isinstance(value, str) else value:
                    yield f"{path}.{key}".lstrip("."), name
