"""Every recipe with pseudo labels loads, passes its checks and builds.

It also fits its data, the labels that it trains on, and the checkpoints that it starts from.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from omegaconf import DictConfig, OmegaConf
from PIL import Image as Picture

from d2kd import Distiller
from d2kd.config import check_config
from d2kd.data.demo import SPLITS, make_demo, register_demo
from d2kd.data.folders import register_folders
from d2kd.data.manifest import Image
from d2kd.data.partial import PartialMapper, random_subset
from d2kd.loading import build_detector
from d2kd.pseudo.categories import CategoryMap
from d2kd.pseudo.coco import load_pseudo_labels, write_labels
from d2kd.pseudo.fuse import Fusion, Labels
from d2kd.pseudo.job import LabelingJob
from d2kd.pseudo.teachers import LabelTeacher, class_names
from d2kd.pseudo.thresholds import FixedThresholds

from .test_configs import _as_train_net, build, load  # noqa: F401

ROOT = Path(__file__).parents[1]
FILES = sorted(
    p.relative_to(ROOT / "configs")
    for folder in ("pseudo", "experiments/pseudo")
    for p in (ROOT / "configs" / folder).rglob("*.py")
)
LABELS = [str(p) for p in FILES if p.name.startswith("labels")]
RUNS = [str(p) for p in FILES if "common" not in p.name and str(p) not in LABELS]

CITYSCAPES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
# Data sets of datasets/README.md: splits with labels, splits without labels, classes.
FOLDERS = {
    "cityscapes": (["train", "val"], [], CITYSCAPES),
    "cityscapes_foggy": (["val"], ["train"], CITYSCAPES),
    "sim10k": (["train"], [], ["car"]),
    "clipart": (["test"], ["train"], CLASS_NAMES),
}
DEMO = 20  # training images, of which a fifth is four


@pytest.fixture(autouse=True, scope="module")
def _data(_as_train_net, tmp_path_factory):  # noqa: F811
    """A small demo set, and one image for each other split. COCO and VOC are not needed."""
    root, before = tmp_path_factory.mktemp("datasets"), DatasetCatalog.list()
    functions, metadata = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    for name, (labeled, others, classes) in FOLDERS.items():
        for split in (*labeled, *others):
            (root / name / split).mkdir(parents=True)
            Picture.new("RGB", (40, 20)).save(root / name / split / "1.png")
        (root / name / "annotations").mkdir()
        coco = {
            "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 20}],
            "categories": [{"id": i, "name": c} for i, c in enumerate(classes, 1)],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": i, "bbox": [i, 0, 9, 9]}
                | {"area": 81, "iscrowd": 0}
                for i in range(1, len(classes) + 1)
            ],
        }
        for split in labeled:
            (root / name / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    make_demo(root, {split: DEMO if split == "demo_train" else 2 for split in SPLITS})
    register_demo(root)
    for name in before:
        # The user's data, and sets of Detectron2, such as cityscapes_fine_instance_seg_train.
        if name.startswith(tuple(f"{folder}_" for folder in FOLDERS)):
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
    register_folders(root)
    known = DatasetCatalog.list()

    def get(name):
        ours = name in known and not name.startswith(("coco", "voc"))
        there = ours or name.endswith(("_car", "_low", "_high"))
        return type(DatasetCatalog).get(DatasetCatalog, name) if there else [{}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetCatalog, "get", get)
        yield
    DatasetCatalog.data, MetadataCatalog.data = functions, metadata


@functools.cache
def load_labels(name: str) -> DictConfig:
    return LazyConfig.load(f"configs/{name}").labels


def nodes(cfg, target) -> list[DictConfig]:
    """All nodes with this function or class as their target, at any depth."""
    if OmegaConf.is_list(cfg):
        return [node for item in cfg for node in nodes(item, target)]
    if not isinstance(cfg, DictConfig):
        return []
    own = [cfg] if cfg.get("_target_") is target else []
    return own + [node for key in cfg for node in nodes(cfg[key], target)]


def student(model: DictConfig) -> DictConfig:
    return model.get("student", model)


def num_classes(model: DictConfig) -> int:
    return student(model).get("num_classes") or student(model).roi_heads.num_classes


# ---- training


@pytest.mark.parametrize("name", RUNS)
def test_loads_and_builds(name):
    cfg = load(name)
    check_config(cfg)
    model = build(cfg)
    image_format = cfg.dataloader.train.mapper.image_format
    assert cfg.dataloader.test.mapper.image_format == image_format
    assert getattr(model, "input_format", image_format) == image_format
    cfg.optimizer.params.model = model
    instantiate(cfg.optimizer)
    assert instantiate(cfg.lr_multiplier)(1 - 1e-6) < 0.2
    instantiate(cfg.dataloader.train.mapper)


@pytest.mark.parametrize("name", RUNS)
def test_evaluates_as_many_classes_as_the_student_has(name):
    cfg = load(name)
    names = cfg.dataloader.test.dataset.names
    assert cfg.dataloader.evaluator.dataset_name == names
    DatasetCatalog.get(names)  # some data sets know their classes only after loading
    assert len(MetadataCatalog.get(names).thing_classes) == num_classes(cfg.model)
    own_json = hasattr(MetadataCatalog.get(names), "json_file")
    assert own_json or cfg.dataloader.evaluator.output_dir == cfg.train.output_dir


@pytest.mark.parametrize("name", RUNS)
def test_incomplete_labels_mask_the_losses(name):
    cfg = load(name)
    data = cfg.dataloader.train.dataset
    partial = nodes(data, load_pseudo_labels) or any(
        node.get("rest") == "unlabeled" for node in nodes(data, random_subset)
    )
    if partial:
        assert cfg.model._target_ is Distiller
        assert isinstance(instantiate(cfg.dataloader.train.mapper), PartialMapper)


def test_trains_on_labels_and_from_checkpoints_that_others_make():
    labels = {f"{load_labels(x).output}/labels.json" for x in LABELS}
    runs = {x: load(x) for x in RUNS}
    places = [cfg.train.output_dir for cfg in runs.values()]
    assert len(set(places)) == len(places)
    for name, cfg in runs.items():
        assert {node.path for node in nodes(cfg.dataloader, load_pseudo_labels)} <= labels, name
        start = cfg.train.init_checkpoint
        if start.startswith("output/pseudo"):
            assert start in {f"{place}/model_final.pth" for place in places}, name


def test_bounds_of_an_adapted_student_differ_in_their_data_only():
    for domain in ("fog", "night"):
        adapted, *others = (
            load(f"experiments/pseudo/{domain}_{x}.py") for x in ("adapted", "oracle", "source")
        )
        for other in others:
            assert other.dataloader.train.dataset != adapted.dataloader.train.dataset
            other.dataloader.train.dataset = adapted.dataloader.train.dataset
            other.train.output_dir = adapted.train.output_dir
            assert other == adapted


@pytest.mark.parametrize("pair", ["cityscapes_foggy", "sim10k_cityscapes", "voc_clipart"])
def test_adaptation_continues_from_the_source(pair):
    source, adapted = (load(f"pseudo/{pair}/{x}.py") for x in ("source", "adapted"))
    assert student(adapted.model) == source.model
    assert adapted.dataloader.test == source.dataloader.test
    assert adapted.dataloader.train.dataset.source == source.dataloader.train.dataset
    assert adapted.train.init_checkpoint == f"{source.train.output_dir}/model_final.pth"
    assert adapted.train.max_iter == source.train.max_iter / 3
    assert adapted.optimizer.lr == source.optimizer.lr / 2


def test_cocos_share_is_a_fifth_and_stage_1_has_the_usual_steps():
    alone, pseudo, tuned = (load(f"pseudo/coco/{x}.py") for x in ("share", "pseudo", "finetune"))
    usual = load("retinanet/retinanet_R_50_FPN_2x.py")
    fifth = alone.dataloader.train.dataset
    assert (fifth.share, fifth.seed) == (0.2, 0)
    assert pseudo.dataloader.train.dataset.labeled == fifth
    assert pseudo.dataloader.train.dataset.rest.images == fifth
    assert tuned.dataloader.train.dataset == fifth
    for cfg in (alone, pseudo, tuned):
        assert cfg.model.student == usual.model
    assert pseudo.train.max_iter == usual.train.max_iter == 3 * alone.train.max_iter
    assert pseudo.optimizer.lr == usual.optimizer.lr == 10 * tuned.optimizer.lr


def test_a_next_round_needs_no_other_file():
    """The overrides that docs/pseudo.md shows."""
    docs = (ROOT / "docs/pseudo.md").read_text()
    shown = [
        "dataloader.train.dataset.target.path=output/pseudo/demo_fog_2/labels.json",
        "labels.teachers.large.model=configs/experiments/pseudo/fog_adapted.py",
        "labels.teachers.large.weights=output/pseudo/fog_adapted/model_final.pth",
        "labels.output=output/pseudo/demo_fog_2",
    ]
    assert all(x in docs for x in shown)
    node = load("experiments/pseudo/fog_adapted.py", shown[0]).dataloader.train.dataset
    assert node.target.path == "output/pseudo/demo_fog_2/labels.json"
    labels = LazyConfig.load("configs/experiments/pseudo/labels_fog.py")
    teacher = LazyConfig.apply_overrides(labels, shown[1:]).labels.teachers.large
    detector, image_format, _ = build_detector(teacher.model)
    assert (type(detector), detector.num_classes, image_format) == (RetinaNet, 10, "RGB")


# ---- labeling


@pytest.mark.parametrize("name", LABELS)
def test_labels_have_known_fields(name):
    node = load_labels(name)
    required = set(LabelingJob.required_fields())
    assert required <= set(node) <= required | set(LabelingJob.optional_fields())
    assert isinstance(instantiate(node.thresholds), FixedThresholds)
    assert isinstance(instantiate(node.fusion), Fusion)
    assert node.images.dataset in DatasetCatalog.list()
    assert [load_labels(x).output for x in LABELS].count(node.output) == 1


@pytest.mark.parametrize("name", LABELS)
def test_teachers_know_the_classes_that_they_were_trained_on(name):
    node = load_labels(name)
    for teacher in node.teachers.values():
        fields = {k: v for k, v in teacher.items() if k != "_target_"}
        inspect.signature(LabelTeacher).bind(**fields)
        classes = class_names(teacher.classes)
        CategoryMap(class_names(node.classes), teacher.get("categories"), classes)
        if teacher.weights == "zoo":
            zoo = model_zoo.get_config(teacher.model)
            assert len(classes) == zoo.MODEL.RETINANET.NUM_CLASSES
            continue
        cfg = load(os.path.relpath(teacher.model, "configs"))
        assert num_classes(cfg.model) == len(classes)
        shipped = os.path.normpath(teacher.weights) == "configs/demo/teacher.pth"
        assert shipped or teacher.weights == f"{cfg.train.output_dir}/model_final.pth"
        # Teachers label images of the size that they are validated on.
        sizes = nodes(cfg.dataloader.test.mapper.augmentations, ResizeShortestEdge)
        found = [(x.short_edge_length, x.max_size) for x in sizes]
        size = teacher.get("min_size_test", 800), teacher.get("max_size_test", 1333)
        assert found == ([size] if size[0] else [])


def test_students_classes_are_those_of_their_labels():
    outputs = {load_labels(x).output: load_labels(x) for x in LABELS}
    for name in RUNS:
        cfg = load(name)
        for node in nodes(cfg.dataloader, load_pseudo_labels):
            labels = outputs[str(Path(node.path).parent)]
            assert num_classes(cfg.model) == len(class_names(labels.classes)), name


def test_two_teachers_own_the_halves():
    owned = {}
    for which in ("halves", "low", "high"):
        node = load_labels(f"experiments/pseudo/labels_{which}.py")
        classes = class_names(node.classes)
        owned[which] = {
            name: CategoryMap(classes, t.categories, list(t.classes)).owned.tolist()
            for name, t in node.teachers.items()
        }
    low, high = [True] * 5 + [False] * 5, [False] * 5 + [True] * 5
    assert owned["halves"] == dict(low=low, high=high)
    assert (owned["low"], owned["high"]) == (dict(low=low), dict(high=high))
    for name, kind in (("retinanet_low", RetinaNet), ("fcos_high", FCOS)):
        assert load(f"experiments/pseudo/{name}.py").model._target_ is kind


# ---- data of the demo


@pytest.fixture
def labeled(tmp_path):
    """A labels.json with a box in each training image, by a teacher of the digits 0 to 4."""
    records = DatasetCatalog.get("demo_train")
    found = Labels(
        boxes=np.array([[10, 10, 30, 40]], np.float32),
        scores=np.array([0.9], np.float32),
        classes=np.array([3]),
        votes=np.array([1]),
        teachers=np.ones((1, 1), bool),
        ignore=np.array([False]),
        weights=np.ones(1, np.float32),
    )
    images = [Image(x["image_id"], x["file_name"], 128, 128) for x in records]
    path = tmp_path / "labels.json"
    write_labels(
        path,
        images,
        {i.image_id: found for i in images},
        [str(i) for i in range(10)],
        dict(teachers={"low": {}}, settings={}, manifest={}),
        annotated={i.image_id: np.arange(10) < 5 for i in images},
    )
    return path


def data(name: str, labeled: Path | None = None) -> list[dict]:
    node = load(f"experiments/pseudo/{name}.py").dataloader.train.dataset
    for labels in nodes(node, load_pseudo_labels):
        labels.path = str(labeled)
    return instantiate(node)


@pytest.mark.parametrize("name, first", [("retinanet_low", 0), ("fcos_high", 5)])
def test_a_half_is_all_images_with_the_boxes_of_its_classes(name, first):
    whole, half = data("all"), data(name)
    assert len(half) == len(whole) == DEMO

    def boxes(images, start):
        return [[(a["category_id"] - start, a["bbox"]) for a in x["annotations"]] for x in images]

    rest = [[box for box in x if 0 <= box[0] < 5] for x in boxes(whole, first)]
    assert boxes(half, 0) == rest and any(rest)


def test_a_fifth_and_the_rest(labeled):
    fifth, both = data("share"), data("share_pseudo", labeled)
    ids = {x["image_id"] for x in fifth}
    assert len(fifth) == DEMO / 5 and len(both) == DEMO
    for image in both:
        teachers = [a.get("source") == "pseudo" for a in image["annotations"]]
        assert teachers and set(teachers) == {image["image_id"] not in ids}
    distilled = data("share_distilled")
    assert {x["image_id"] for x in distilled if x.get("annotated_classes") != []} == ids
    assert len(distilled) == 2 * DEMO  # the repeated fifth, and all images without labels


def test_adaptation_sees_as_many_images_of_both_domains(labeled):
    mixed = data("fog_adapted", labeled)
    assert sum("annotated_classes" in x for x in mixed) == len(mixed) / 2 == DEMO


def test_labels_of_one_half_say_what_was_searched_for(labeled):
    images = data("halves_low_student", labeled)
    assert all(x["annotated_classes"] == [0, 1, 2, 3, 4] for x in images)
    mapper = instantiate(load("experiments/pseudo/halves_low_student.py").dataloader.train.mapper)
    assert mapper(images[0])["annotated_classes"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", [str(p) for p in FILES])
def test_configs_stay_short(name):
    assert len((ROOT / "configs" / name).read_text().splitlines()) <= 50
