"""The LazyConfig of a yacs config, compared with what Detectron2 builds from the yacs config."""

import argparse
import itertools
import json
import re
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier, build_lr_scheduler, build_optimizer
from detectron2.utils.env import seed_all_rng
from omegaconf import OmegaConf
from pycocotools import mask as coco_masks
from torch import nn

import train_net
from d2kd import Distiller, load_student_config
from d2kd.audit import num_classes
from d2kd.checkpoint import Checkpointer
from d2kd.config import check_config, load_config
from d2kd.lazy import resolve_target
from tests import project, toys

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
NAMES = sorted(
    str(x.relative_to(ZOO)) for x in ZOO.rglob("*.yaml") if not x.name.startswith("Base")
)
QUICK = [
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",  # with proposals from a file
    "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "Cityscapes/mask_rcnn_R_50_FPN.yaml",  # with crops
    "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",  # with a sampler
    "PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml",  # with two sets
]

SMALL = """
VERSION: 2
MODEL: {DEVICE: cpu, WEIGHTS: ""}
DATASETS: {TRAIN: [toy_yacs], TEST: [toy_yacs]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {MIN_SIZE_TRAIN: [64, 72], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 3, STEPS: [2], WARMUP_ITERS: 2, BASE_LR: 0.01}
SEED: 3
"""
BACKBONE = "RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN, OUT_FEATURES: [%s]}"
MODELS = {
    "RetinaNet": f"""
_BASE_: {ZOO}/Base-RetinaNet.yaml
MODEL:
  {BACKBONE % "res3, res4, res5"}
  FPN: {{OUT_CHANNELS: 16}}
  RETINANET: {{NUM_CLASSES: 10, NUM_CONVS: 1, PRIOR_PROB: 0.1}}
""",
    "GeneralizedRCNN": f"""
_BASE_: {ZOO}/Base-RCNN-FPN.yaml
MODEL:
  {BACKBONE % "res2, res3, res4, res5"}
  FPN: {{OUT_CHANNELS: 16}}
  ROI_HEADS: {{NUM_CLASSES: 10, SCORE_THRESH_TEST: 0.01}}
  ROI_BOX_HEAD: {{FC_DIM: 32}}
  RPN: {{POST_NMS_TOPK_TEST: 50, POST_NMS_TOPK_TRAIN: 50}}
""",
}


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    table, images = toys.coco_dataset(folder / "images")
    content = json.loads(table.read_text())
    for x in content["annotations"]:
        left, top, width, height = x["bbox"]
        mask = np.zeros((64, 64), dtype=np.uint8, order="F")
        mask[top : top + height, left : left + width // 2] = 1
        rle = coco_masks.encode(mask)
        x["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    table.write_text(json.dumps(content))
    register_coco_instances("toy_yacs", {}, str(table), str(images))
    yield
    DatasetCatalog.remove("toy_yacs")
    MetadataCatalog.remove("toy_yacs")


def write(folder: Path, kind: str = "RetinaNet", *changes: str) -> tuple[str, object]:
    """Write a small config; its path, and the same as Detectron2 reads it."""
    path = folder / f"{kind}.yaml"
    config = get_cfg()
    base = folder / "small.yaml"
    base.write_text(MODELS[kind])
    config.merge_from_file(str(base))
    base.write_text(SMALL)
    config.merge_from_file(str(base))
    config.merge_from_list(list(changes))
    path.write_text(config.dump())
    return str(path), config


def saved(cfg, folder: Path):
    """A config after it was written to a file and read again, as a run keeps it."""
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    return load_config(str(folder / "config.yaml"))


@pytest.mark.parametrize(
    "name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in NAMES]
)
def test_all_configs_of_detectron2s_zoo(name):
    path = str(ZOO / name)
    expected = get_cfg()
    expected.merge_from_file(path)
    cfg = load_config(path, ["train.device=cpu"])
    check_config(cfg, training=True)
    rebuilt = get_cfg()
    rebuilt.merge_from_other_cfg(type(rebuilt)(OmegaConf.to_container(cfg.model.config)))
    # yacs does not care for tuples in a tuple.
    assert yaml.safe_load(rebuilt.dump()) == yaml.safe_load(expected.dump())
    # The mapper.
    for is_train, section in ((True, "train"), (False, "test")):
        mapper = vars(instantiate(cfg.dataloader[section].mapper))
        theirs = vars(DatasetMapper(expected, is_train))
        augmentations = [x.pop("augmentations") for x in (mapper, theirs)]
        for name, value in theirs.items():
            used = is_train or name in ("is_train", "image_format", "proposal_topk")
            assert not used or np.array_equal(mapper[name], value), name
        images = []
        for augmentation in augmentations:
            seed_all_rng(1)
            pixels = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
            images.append(T.AugInput(pixels))
            augmentation(images[-1])
        assert np.array_equal(*(x.image for x in images))
    # The loaders.
    train, test = cfg.dataloader.train, cfg.dataloader.test
    assert train.total_batch_size == expected.SOLVER.IMS_PER_BATCH
    names = train.dataset["names"]
    names = [names] if isinstance(names, str) else list(names)
    assert tuple(names) == expected.DATASETS.TRAIN
    assert train.dataset.filter_empty == expected.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert test.dataset["names"] == expected.DATASETS.TEST[0] and not test.dataset.filter_empty
    proposals = list(train.dataset.get("proposal_files", ()))
    assert tuple(proposals) == tuple(expected.DATASETS.PROPOSAL_FILES_TRAIN)
    samplers = {"RepeatFactorTrainingSampler": "sampler" in train}
    assert samplers.get(expected.DATALOADER.SAMPLER_TRAIN, "sampler" not in train)
    # The schedule.
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(expected, layer)
    scheduler = build_lr_scheduler(expected, optimizer)
    ours = instantiate(cfg.lr_multiplier)
    steps = expected.SOLVER.MAX_ITER
    for step in {0, 1, steps - 1, *expected.SOLVER.STEPS, *range(0, steps, steps // 20)}:
        assert ours(step / steps) == scheduler._multiplier(step / steps)
    assert cfg.train.max_iter == steps and cfg.train.init_checkpoint == expected.MODEL.WEIGHTS
    assert cfg.optimizer.lr == expected.SOLVER.BASE_LR
    assert cfg.train.eval_period == expected.TEST.EVAL_PERIOD


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", ["COCOEvaluator"]),
        ("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml", ["PascalVOCDetectionEvaluator"]),
        ("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", ["LVISEvaluator"]),
        ("Cityscapes/mask_rcnn_R_50_FPN.yaml", ["CityscapesInstanceEvaluator"]),
        ("Misc/semantic_R_50_FPN_1x.yaml", ["SemSegEvaluator"]),
        (
            "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
            ["SemSegEvaluator", "COCOEvaluator", "COCOPanopticEvaluator"],
        ),
    ],
)
def test_the_evaluator_is_that_of_the_data_set(name, kinds):
    cfg = load_student_config(name)
    cfg.train.output_dir = "some/where"
    nodes = cfg.dataloader.evaluator
    nodes = [nodes] if len(kinds) == 1 else list(nodes)
    assert [resolve_target(x).__name__ for x in nodes] == kinds
    for node in nodes:
        assert node.dataset_name == cfg.dataloader.test.dataset.names
        assert node.get("output_dir", "some/where/inference") == "some/where/inference"


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_is_detectron2s(tmp_path, kind):
    path, config = write(tmp_path, kind)
    torch.manual_seed(0)
    expected = build_model(config)
    cfg = saved(load_student_config(path), tmp_path)
    Path(path).unlink()  # a run does not need the file any more
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    assert type(model) is type(expected)
    weights = expected.state_dict()
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    batch = toys.batch()
    losses = []
    for detector in (model, expected):
        torch.manual_seed(1)
        losses.append(detector(batch))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(x, losses[1][name]) for name, x in losses[0].items())
    found, wanted = (x.eval()(batch)[0]["instances"] for x in (model, expected))
    assert len(wanted) and torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
    assert torch.equal(found.scores, wanted.scores)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["SOLVER.WEIGHT_DECAY_NORM", 0.5, "SOLVER.NESTEROV", True],
        ["SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.25],
        ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01],
        [
            *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
            *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1, "SOLVER.CLIP_GRADIENTS.NORM_TYPE", 1.0),
        ],
    ],
)
def test_the_optimizer_is_detectron2s(tmp_path, changes):
    path, config = write(tmp_path, "RetinaNet", *changes)
    cfg = load_student_config(path)
    states = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
        if ours:
            cfg.optimizer.params.model = model
            optimizer = instantiate(cfg.optimizer)
        else:
            optimizer = build_optimizer(config, model)
        names = {p: name for name, p in model.named_parameters()}
        groups = {
            names[p]: tuple(g[k] for k in ("lr", "weight_decay", "momentum", "nesterov"))
            for g in optimizer.param_groups
            for p in g["params"]
        }
        for _ in range(2):  # the second step has a momentum
            for p in names:
                p.grad = torch.randn(p.shape) if p.requires_grad else None
            optimizer.step()
        states.append((groups, model.state_dict()))
    assert states[0][0] == states[1][0]
    assert all(torch.allclose(x, states[1][1][name]) for name, x in states[0][1].items())


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["SOLVER.GAMMA", 0.3, "SOLVER.WARMUP_METHOD", "constant", "SOLVER.WARMUP_FACTOR", 0.2],
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.001],
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.RESCALE_INTERVAL", True],
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS", 2],
        ["SOLVER.WARMUP_ITERS", 100],
    ],
)
def test_the_learning_rate_of_each_step_is_detectron2s(tmp_path, changes):
    more = ["SOLVER.MAX_ITER", 20, "SOLVER.STEPS", (9, 15), "SOLVER.WARMUP_ITERS", 5]
    path, config = write(tmp_path, "RetinaNet", *more, *changes)
    rates = []
    for ours in (True, False):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.SOLVER.BASE_LR)
        if ours:
            schedule = instantiate(load_student_config(path).lr_multiplier)
            scheduler = LRMultiplier(optimizer, schedule, config.SOLVER.MAX_ITER)
        else:
            scheduler = build_lr_scheduler(config, optimizer)
        rates.append([])
        for _ in range(19):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert rates[0] == rates[1] and len(set(rates[0])) > 2


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["INPUT.CROP.ENABLED", True, "INPUT.RANDOM_FLIP", "vertical"],
        [
            *("MODEL.MASK_ON", True, "INPUT.CROP.ENABLED", True, "INPUT.MASK_FORMAT", "bitmask"),
            *("INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [40, 50]),
        ],
        [
            *("INPUT.MIN_SIZE_TRAIN", (50, 90), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
            *("INPUT.FORMAT", "RGB", "INPUT.RANDOM_FLIP", "none"),
        ],
    ],
)
def test_the_training_images_are_detectron2s(tmp_path, changes):
    path, config = write(tmp_path, "RetinaNet", *changes)
    cfg = saved(load_student_config(path), tmp_path)
    check_config(cfg, training=True)
    records = instantiate(cfg.dataloader.train.dataset)
    sizes = set()
    for seed in range(4):
        images = []
        for mapper in (instantiate(cfg.dataloader.train.mapper), DatasetMapper(config, True)):
            seed_all_rng(seed)
            images.append(mapper(records[seed]))
        ours, theirs = images
        assert torch.equal(ours["image"], theirs["image"])
        found, wanted = ours["instances"], theirs["instances"]
        assert torch.equal(found.gt_boxes.tensor, wanted.gt_boxes.tensor)
        assert torch.equal(found.gt_classes, wanted.gt_classes)
        assert found.has("gt_masks") == wanted.has("gt_masks") == config.MODEL.MASK_ON
        if config.MODEL.MASK_ON:
            assert torch.equal(found.gt_masks.tensor, wanted.gt_masks.tensor)
        sizes.add(ours["image"].shape)
    assert len(sizes) > 1 or config.INPUT.CROP.TYPE == "absolute"


def test_the_sampler_that_repeats_rare_classes_is_carried_over(tmp_path):
    changes = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
    path, config = write(tmp_path, "RetinaNet", *changes, "DATALOADER.REPEAT_THRESHOLD", 0.5)
    cfg = saved(load_student_config(path), tmp_path)
    check_config(cfg, training=True)
    sampler = instantiate(cfg.dataloader.train.sampler)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        get_detection_dataset_dicts("toy_yacs"), 0.5
    )
    expected = RepeatFactorTrainingSampler(factors, seed=config.SEED)
    first, second = (list(itertools.islice(x, 30)) for x in (sampler, expected))
    assert first == second and len(set(first)) > 1


class Losses(HookBase):
    def __init__(self):
        self.totals = []

    def after_step(self):
        self.totals.append(self.trainer.storage.latest()["total_loss"][0])


@pytest.mark.slow
def test_three_steps_have_the_losses_of_detectron2s_trainer(tmp_path):
    # One size and no flips, because the random numbers of the two trainers differ.
    changes = ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none"]
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01]
    weights = tmp_path / "start.pth"
    more = ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path / "theirs")]
    path, config = write(tmp_path, "RetinaNet", *changes, *clip, *more, "DATASETS.TEST", ())
    Checkpointer(build_model(config), str(tmp_path)).save("start")

    class Theirs(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            sampler = TrainingSampler(6, seed=cfg.SEED)  # DefaultTrainer's has a random seed
            return build_detection_train_loader(cfg, sampler=sampler)

    theirs = Theirs(config)
    theirs.resume_or_load(resume=False)
    losses = Losses()
    theirs.register_hooks([losses])
    theirs.train()

    args = dict(config_file=path, resume=False, eval_only=False, eval_teacher=False)
    opts = [f"train.output_dir={tmp_path / 'ours'}", "train.log_period=1"]
    train_net.main(argparse.Namespace(**args, opts=opts))
    lines = (tmp_path / "ours" / "metrics.json").read_text().splitlines()
    totals = [json.loads(line)["total_loss"] for line in lines]
    # Detectron2 writes the median of the last 20 steps.
    medians = [np.median(losses.totals[: i + 1]) for i in range(3)]
    assert totals == pytest.approx(medians, rel=1e-5) and len(set(losses.totals)) == 3
    final = torch.load(tmp_path / "ours" / "model_final.pth", weights_only=True)["model"]
    for name, x in theirs.model.state_dict().items():
        assert torch.allclose(final[name].float(), x.float(), rtol=1e-4, atol=1e-6), name


def test_a_student_of_a_project(tmp_path):
    path = project.write_config(tmp_path / "project.yaml")
    setup = "tests.project.add_project_config"
    for given in (setup, project.add_project_config):
        cfg = saved(load_student_config(path, given), tmp_path)
        assert cfg.model.setup == setup
        model = instantiate(cfg.model)
        assert type(model) is project.ProjectNet and model.gain == 2.5
    cfg.model.config.MODEL.PROJECT.GAIN = 4.0
    assert Distiller(student=cfg.model).student.gain == 4.0
    assert num_classes(cfg.model, "model") == ("model", None)  # its keys are not known


def test_the_number_of_classes_is_found_and_can_be_changed(tmp_path):
    for kind, section in (("RetinaNet", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")):
        path, _ = write(tmp_path, kind)
        key = f"model.config.MODEL.{section}.NUM_CLASSES"
        assert num_classes(load_config(path).model, "model") == (key, 10)
        assert num_classes(load_config(path, [f"{key}=12"]).model, "model") == (key, 12)


def test_the_channel_order_is_that_of_the_file(tmp_path):
    path, _ = write(tmp_path, "RetinaNet", "INPUT.FORMAT", "RGB")
    student = load_student_config(path).model
    assert Distiller(student=student).input_format == "RGB"
    config = "Misc/semantic_R_50_FPN_1x.yaml"  # its model does not keep the order
    cfg = load_student_config(config)
    cfg.model.config.INPUT.FORMAT = "RGB"
    cfg.model.config.MODEL.RESNETS.update(DEPTH=18, RES2_OUT_CHANNELS=64)
    assert Distiller(student=instantiate(cfg.model)).input_format == "RGB"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["SOLVER.LR_SCHEDULER_NAME", "Poly"], r"LR_SCHEDULER_NAME: expected .*, found 'Poly'"),
        (["INPUT.RANDOM_FLIP", "both"], r"INPUT\.RANDOM_FLIP: expected .*, found 'both'"),
        (
            ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"],
            r"SAMPLER_TRAIN: expected TrainingSampler, .*found 'Ran.*dataloader\.train\.sampler",
        ),
        (
            ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"],
            r"CLIP_TYPE: expected value, norm, full_model, found 'all'",
        ),
        (["SOLVER.MAX_ITER", 0], r"SOLVER\.MAX_ITER: expected"),
        (["SOLVER.BASE_LR", 0.0], r"SOLVER\.BASE_LR: expected"),
    ],
)
def test_what_a_lazyconfig_cannot_say_is_refused(tmp_path, changes, message):
    path, _ = write(tmp_path, "RetinaNet", *changes)
    with pytest.raises(ValueError, match=re.escape(path) + ": .*" + message):
        load_config(path)


def test_what_has_no_effect_is_named(tmp_path, caplog):
    changes = [
        *("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.STEPS", (2, 7), "SOLVER.MAX_ITER", 5),
        *("TEST.PRECISE_BN.ENABLED", True, "TEST.AUG.ENABLED", True),
        *("DATASETS.TEST", ("toy_yacs", "other")),
    ]
    path, _ = write(tmp_path, "RetinaNet", *changes)
    cfg = load_student_config(path)
    (record,) = [x for x in caplog.records if x.name.startswith("d2kd")]
    for part in (
        *(path, "SOLVER.REFERENCE_WORLD_SIZE=8", "TEST.PRECISE_BN", "TEST.AUG"),
        *("DATASETS.TEST other", "SOLVER.STEPS 7"),
    ):
        assert part in record.getMessage()
    assert cfg.dataloader.test.dataset.names == "toy_yacs"
    assert cfg.lr_multiplier.scheduler.milestones == [2]
    caplog.clear()
    load_student_config(write(tmp_path)[0])
    assert not [x for x in caplog.records if x.name.startswith("d2kd")]


def test_keys_of_a_project_that_only_the_model_sees_are_named(tmp_path, caplog):
    path, config = write(tmp_path)
    Path(path).write_text(config.dump() + "INPUT_OF_A_PROJECT: {SIZE: 3}\n")

    def setup(cfg):
        cfg.INPUT_OF_A_PROJECT = type(cfg)(dict(SIZE=1))

    load_student_config(path, setup)
    assert "INPUT_OF_A_PROJECT.SIZE (only the model sees" in caplog.text


def test_a_limit_of_the_whole_gradient_is_trains(tmp_path):
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    path, _ = write(tmp_path, "RetinaNet", *clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5)
    cfg = load_config(path)
    assert cfg.train.clip_grad_norm == 0.5 and "clip_type" not in cfg.optimizer


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("NUM_CLASES=3", r"expected a field of .*RETINANET.*Did you mean NUM_CLASSES"),
        ("NUM_CLASSES=x", r"build_yacs_model\.config: expected the kinds .*NUM_CLASSES"),
    ],
)
def test_mistakes_in_overrides_of_the_model_are_named(tmp_path, override, message):
    path, _ = write(tmp_path)
    with pytest.raises(ValueError, match=message):
        instantiate(load_config(path, [f"model.config.MODEL.RETINANET.{override}"]).model)


def test_without_data_sets_there_are_no_loaders(tmp_path):
    path, _ = write(tmp_path, "RetinaNet", "DATASETS.TRAIN", (), "DATASETS.TEST", ())
    cfg = load_config(path)
    check_config(cfg)
    assert "train" not in cfg.dataloader and "evaluator" not in cfg.dataloader
    assert instantiate(cfg.dataloader.test.mapper).image_format == "BGR"
    with pytest.raises(ValueError, match=r"dataloader: expected a section 'train'"):
        check_config(cfg, training=True)


def test_a_set_that_is_not_registered_yet_is_evaluated_as_coco(tmp_path):
    path, _ = write(tmp_path, "RetinaNet", "DATASETS.TEST", ("registered_later",))
    cfg = load_student_config(path)
    assert resolve_target(cfg.dataloader.evaluator) is COCOEvaluator
    assert "registered_later" not in MetadataCatalog.list()
