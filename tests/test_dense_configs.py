"""The recipes with PGD and with RM + PFI have the published values.

These are configs of ATSS, GFL, DDOD, AutoAssign and FCOS. The tables below do not use the configs.
"""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from d2kd import Distiller
from d2kd.detectors import TopBlock
from d2kd.methods import PFI, PGD, RankMimic

from .test_configs import _as_train_net, hollow, load  # noqa: F401

DETECTORS = ["fcos", "autoassign", "atss", "gfl", "ddod"]
CROWDS = "ddod_crowdhuman"

# PGD's released settings: temperature, alpha, beta, gamma, number of locations per box.
PGD_WEIGHTS = {
    "fcos": (0.8, 0.04, 0.02, 0.064, 30),
    "autoassign": (0.4, 0.08, 0.04, 0.128, 30),
    "atss": (0.8, 0.08, 0.04, 0.128, 9),
    "gfl": (0.8, 0.04, 0.02, 0.064, 30),
    "ddod": (0.8, 0.08, 0.04, 0.128, 30),
    CROWDS: (0.8, 0.001, 0.0005, 0.0016, 30),
}
# Numbers of tensors outside the bottom-up network. The student inherits all of them. The six
# convolutions of the neck, P6 and P7 have 16 tensors. Each convolution of a tower has 3 tensors
# with GroupNorm, and 4 if it also has a bias.
INHERITED = {
    "fcos": 16 + 8 * 4 + 3 * 2,
    "autoassign": 16 + 8 * 4 + 3 * 2 + 1 + 2,  # scales; center prior
    "atss": 16 + 8 * 3 + 3 * 2 + 1,
    "gfl": 16 + 8 * 3 + 2 * 2 + 1,
    "ddod": 16 + 8 * 3 + 3 * 2 + 1 + 2 * 2,  # offsets
}
INHERITED[CROWDS] = INHERITED["ddod"]


def conv(i: int, o: int, k: int = 3, bias: bool = True) -> int:
    return i * o * k * k + o * bias


NECK = conv(512, 256, 1) + conv(1024, 256, 1) + conv(2048, 256, 1) + 3 * conv(256, 256)
TOWERS = 8 * (conv(256, 256, bias=False) + 2 * 256)
# Numbers of parameters of the head and of the detector itself.
HEAD = {
    "fcos": TOWERS + 8 * 256 + conv(256, 80) + conv(256, 4) + conv(256, 1),
    "autoassign": TOWERS + 8 * 256 + conv(256, 80) + conv(256, 4) + conv(256, 1) + 5 + 4 * 80,
    "atss": TOWERS + conv(256, 80) + conv(256, 4) + conv(256, 1) + 5,
    "gfl": TOWERS + conv(256, 80) + conv(256, 68) + 5,
    "ddod": TOWERS + conv(256, 80) + conv(256, 4) + conv(256, 1) + 5 + 2 * conv(256, 18),
}
HEAD[CROWDS] = HEAD["ddod"] - conv(256, 80) + conv(256, 1)
# Numbers of parameters of a ResNet: its convolutions, without the classifier and frozen BatchNorm.
BOTTOM_UP = {50: 23_454_912, 101: 42_394_816}

# Learning rate, images per batch, steps per epoch, epochs, epochs of the drops, gradient limit.
STUDENT = (0.02, 32, 3665, 12, (8, 11), 35)
TEACHER = (0.02, 32, 3665, 36, (24, 33), 0)
CROWD_STUDENT = (0.01, 16, 938, 12, (8, 11), 35)
CROWD_TEACHER = (0.01, 16, 938, 36, (24, 33), 0)


def config(detector: str, depth: int = 50, method: str = "") -> str:
    """The file of a student, of a teacher (depth 101) or of a distilled student."""
    kind, _, data = detector.partition("_")
    schedule = "1x" if depth == 50 else "3x_ms"
    parts = (kind, "R", str(depth), "FPN", schedule, data, method)
    return f"{kind}/{'_'.join(part for part in parts if part)}.py"


# FGD's students, and mmdetection's teacher of FGD, LD and PKD.
FGD_STUDENT = (0.01, 16, 7330, 12, (8, 11), 35)
FGD_TEACHER = (0.01, 16, 7330, 24, (16, 22), 0)
STUDENTS = {config(d): STUDENT for d in DETECTORS} | {
    config(CROWDS): CROWD_STUDENT,
    "gfl/gfl_R_50_FPN_1x_bs16.py": FGD_STUDENT,
    "gfl/gfl_R_18_FPN_1x_bs16.py": FGD_STUDENT,
}
TEACHERS = {config(d, 101): TEACHER for d in DETECTORS} | {
    config(CROWDS, 101): CROWD_TEACHER,
    "gfl/gfl_R_101_FPN_2x_ms.py": FGD_TEACHER,
    "gfl/gfl_swin_T_FPN_2x_ms.py": (1e-4, *FGD_TEACHER[1:]),
}


@pytest.fixture(scope="module", params=PGD_WEIGHTS)
def distilled(request, _as_train_net) -> tuple[str, Distiller]:  # noqa: F811
    """The name of a detector, and a distiller for it."""
    node = load(config(request.param, method="pgd"), "model.teacher.weights=null").model
    node.student = hollow(node.student)
    return request.param, instantiate(node)


def both(model: Distiller) -> tuple[nn.Module, nn.Module]:
    return model.student, model.teacher.model


def test_weights_of_pgd_are_the_released_ones(distilled):
    detector, model = distilled
    (method,) = model.distillation.values()
    assert isinstance(method, PGD)
    tau, *weights, k = PGD_WEIGHTS[detector]
    assert [method.alpha, method.beta, method.gamma] == pytest.approx(weights, rel=1e-12)
    assert (method.tau, method.delta, method.weight, method.on) == (tau, 0.0008, 1, "towers")
    # The paper's form. The release chooses from the whole image.
    expected = dict(k=k, xis=(0.8, 0.6), candidates="box", weighting="gaussian")
    assert {key: method.choice[key] for key in expected} == expected
    levels = [1 + method.level_step * i for i in range(len(method.pairs))]
    assert levels == [1, 1.25, 1.5, 1.75, 2]
    assert not any(method.parameters())


def test_student_inherits_all_but_the_bottom_up_network(distilled):
    detector, model = distilled
    own, given = (net.state_dict() for net in both(model))
    names = {  # the student keeps its own counters of positives (DDOD)
        k for k in given if not k.startswith("backbone.bottom_up.") and "balance" not in k
    }
    assert len(names) == INHERITED[detector]
    assert names <= own.keys()
    assert all(torch.equal(own[k], given[k]) for k in names)


def test_only_ddod_has_its_boxes_assigned_by_the_teacher(distilled):
    detector, model = distilled
    assert model.teacher_assigns == detector.startswith("ddod")


def test_student_and_teacher_have_the_parameters_of_the_published_network(distilled):
    detector, model = distilled
    top = conv(2048 if detector == "autoassign" else 256, 256) + conv(256, 256)
    for net, depth in zip(both(model), BOTTOM_UP, strict=True):
        sizes = {name: p.numel() for name, p in net.named_parameters()}
        bottom_up = sum(v for k, v in sizes.items() if k.startswith("backbone.bottom_up."))
        neck = sum(v for k, v in sizes.items() if k.startswith("backbone.")) - bottom_up
        assert bottom_up == BOTTOM_UP[depth]
        assert neck == NECK + top
        assert sum(sizes.values()) - bottom_up - neck == HEAD[detector]


def test_classes_start_as_published(distilled):
    detector, model = distilled
    p = 0.02 if detector == "autoassign" else 0.01
    for net in both(model):
        assert net.head.cls_score.bias.tolist() == pytest.approx(
            [-math.log((1 - p) / p)] * net.num_classes
        )
        boxes = 4.0 if detector == "autoassign" else 0.0
        assert net.head.bbox_pred.bias.unique().tolist() == [boxes]


def test_bottom_up_network_is_that_of_torchvision(distilled):
    _, model = distilled
    for net in both(model):
        bottom_up = net.backbone.bottom_up
        for stage in ("res3", "res4", "res5"):
            block = getattr(bottom_up, stage)[0]
            assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
        norms = [m for m in bottom_up.modules() if "Norm" in type(m).__name__]
        assert all(isinstance(m, FrozenBatchNorm2d) for m in norms)
        # red, green, blue
        assert net.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
        assert net.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert (model.input_format, model.teacher.input_format) == ("RGB", "RGB")


def test_stem_and_first_stage_are_frozen_on_coco(distilled):
    detector, model = distilled
    frozen = {n.split(".")[2] for n, p in model.student.named_parameters() if not p.requires_grad}
    assert frozen == (set() if detector == CROWDS else {"stem", "res2"})


def test_p6_and_p7_are_those_of_the_detector(distilled):
    detector, model = distilled
    kind, source = {
        "fcos": (LastLevelP6P7, "p5"),
        "autoassign": (LastLevelP6P7, "res5"),
    }.get(detector, (TopBlock, "p5"))
    for net in both(model):
        assert type(net.backbone.top_block) is kind
        assert net.backbone.top_block.in_feature == source
        assert net.head_in_features == ["p3", "p4", "p5", "p6", "p7"]


def test_detections_are_chosen_as_published(distilled):
    detector, model = distilled
    for net in both(model):
        assert net.test_topk_candidates == 1000
        assert net.max_detections_per_image == (500 if detector == CROWDS else 100)
        assert net.test_nms_thresh == 0.6
        # The FCOS is Detectron2's, which takes the square root of scores.
        assert net.test_score_thresh == (0.2 if detector == "fcos" else 0.05)
        assert net.num_classes == (1 if detector == CROWDS else 80)


def test_what_only_one_detector_has(distilled):
    detector, model = distilled
    for net in both(model):
        if detector == "atss":
            assert (net.quality, net.topk) == ("iou", 9)
        if detector == "gfl":
            assert (net.reg_max, net.topk, net.head.quality) == (16, 9, None)
        if detector.startswith("ddod"):
            assert (net.assigner, net.topk, net.cls_alpha, net.box_alpha) == ("topk", 9, 0.8, 0.6)
        if detector == "autoassign":
            assert not net.center_prior.force_topk


@pytest.mark.parametrize("name", [*STUDENTS, *TEACHERS])
def test_schedule_is_the_released_one(name):
    lr, batch, epoch, epochs, (first, second), limit = (STUDENTS | TEACHERS)[name]
    cfg = load(name)
    assert cfg.optimizer.lr == lr
    assert cfg.dataloader.train.total_batch_size == batch
    assert cfg.train.max_iter == epochs * epoch
    assert cfg.train.eval_period == cfg.train.checkpointer.period == epoch
    assert cfg.train.clip_grad_norm == limit
    scheduler = instantiate(cfg.lr_multiplier)
    expected = {0: 0.001, 250: 0.5, 500: 1, first * epoch - 1: 1, first * epoch + 1: 0.1}
    expected |= {second * epoch - 1: 0.1, second * epoch + 1: 0.01, epochs * epoch - 1: 0.01}
    for step, value in expected.items():
        assert scheduler(step / cfg.train.max_iter) == pytest.approx(value, abs=1e-3), step


@pytest.mark.parametrize("name", [*STUDENTS, *TEACHERS])
def test_images_have_the_released_size_and_colors(name):
    cfg = load(name)
    longest = 1400 if "crowdhuman" in name else 1333
    train, test = cfg.dataloader.train.mapper, cfg.dataloader.test.mapper
    short, flip = train.augmentations
    if name in TEACHERS:
        sizes = [480, 800] if "_2x_" in name else [480, 960]
        assert (list(short.short_edge_length), short.sample_style) == (sizes, "range")
    else:
        assert list(short.short_edge_length) == [800]
    assert flip.horizontal
    assert test.augmentations[0].short_edge_length == 800
    assert short.max_size == test.augmentations[0].max_size == longest
    assert train.image_format == test.image_format == "RGB"
    instantiate(short)


@pytest.mark.parametrize("name", [config(d) for d in PGD_WEIGHTS])
def test_students_start_from_the_weights_of_torchvision(name):
    cfg = load(name)
    assert cfg.model.backbone.bottom_up.stages.depth == 50
    # MSRA's weights would take BGR.
    assert cfg.train.init_checkpoint == "detectron2://ImageNetPretrained/torchvision/R-50.pkl"


def test_swin_is_trained_by_adamw_as_by_its_authors():
    cfg = load("gfl/gfl_swin_T_FPN_2x_ms.py")
    cfg.optimizer.params.model = hollow(cfg.model)
    optimizer = instantiate(cfg.optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {g["lr"] for g in optimizer.param_groups} == {1e-4}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.05, 0}  # none for norms


@pytest.mark.parametrize("name", ["atss/atss_R_50_FPN_1x.py", "atss/atss_R_101_FPN_3x_ms.py"])
def test_everything_decays(name):
    cfg = load(name)
    cfg.optimizer.params.model = hollow(cfg.model)
    optimizer = instantiate(cfg.optimizer)
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["momentum"]) == (1e-4, 0.9)


@pytest.mark.parametrize(
    "name",
    [config(d, method="pgd") for d in PGD_WEIGHTS]
    + [f"{d}/{d}_R_50_FPN_1x_rm_pfi.py" for d in ("atss", "gfl")]
    + [f"gfl/gfl_R_50_FPN_1x_bs16_{m}.py" for m in ("fgd", "pkd", "cwd", "ld")],
)
def test_teacher_is_what_its_config_trains(name):
    cfg = load(name)
    teacher = LazyConfig.load(cfg.model.teacher.model)
    assert cfg.model.teacher.weights == f"{teacher.train.output_dir}/model_final.pth"
    assert teacher.model.backbone.bottom_up.stages.depth == 101
    teacher.model.backbone.bottom_up.stages.depth = 50
    assert teacher.model == cfg.model.student
    assert teacher.dataloader.test == cfg.dataloader.test
    assert teacher.dataloader.evaluator == cfg.dataloader.evaluator


def test_crowdhuman_is_trained_and_evaluated_on_itself():
    for name in (config(CROWDS), config(CROWDS, 101), config(CROWDS, method="pgd")):
        data = load(name).dataloader
        assert data.train.dataset.names == "crowdhuman_train"
        assert data.test.dataset.names == data.evaluator.dataset_name == "crowdhuman_val"
        assert "CrowdHumanEvaluator" in str(data.evaluator._target_)


def test_original_ddod_differs_in_its_assigner_and_clipping():
    own, pgd = load("ddod/ddod_R_50_FPN_1x_original.py"), load(config("ddod"))
    assert (own.model.assigner, own.model.box_alpha) == ("atss", 0.5)
    assert own.train.clip_grad_norm == 0
    own.model.assigner, own.train.clip_grad_norm = "topk", 35.0
    del own.model.box_alpha
    own.train.output_dir = pgd.train.output_dir
    assert own == pgd


@pytest.mark.parametrize(
    "name, lr",
    [
        ("retinanet/retinanet_R_50_FPN_2x_rm_pfi.py", 0.01),
        ("fcos/fcos_R_50_FPN_2x_rm_pfi.py", 0.01),
        ("atss/atss_R_50_FPN_1x_rm_pfi.py", 0.02),
        ("gfl/gfl_R_50_FPN_1x_rm_pfi.py", 0.02),
    ],
)
def test_rm_and_pfi_have_the_weights_and_forms_that_go_together(name, lr):
    cfg = load(name)
    assert cfg.optimizer.lr == lr
    assert not cfg.model.get("inherit")
    rank_mimic, pfi = instantiate(cfg.model.methods).values()
    assert isinstance(rank_mimic, RankMimic) and isinstance(pfi, PFI)
    assert (rank_mimic.weight, rank_mimic.scores, rank_mimic.tau) == (4, "sigmoid", 1)
    assert (rank_mimic.classification, rank_mimic.localization, rank_mimic.sort) == (1, 1, False)
    assert (pfi.weight, pfi.scores, pfi.reduction, pfi.detach_weight) == (
        1.5,
        "logit",
        "norm",
        False,
    )
