"""Every config loads, passes its checks and builds; those for COCO say what was published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog
from detectron2.model_zoo import get_checkpoint_url
from omegaconf import DictConfig, OmegaConf

from d2kd import Distiller, Teacher
from d2kd.config import check_config, load_config
from d2kd.data import register_all
from d2kd.methods import MCDropout

ROOT = Path(__file__).parents[1]
FILES = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.py"))
# What train_net.py can run; other configs import the rest.
RUNS = [name for name in FILES if "common" not in name]
COCO_RUNS = [name for name in RUNS if not name.startswith("demo/")]
FGD_RUNS = [name for name in COCO_RUNS if name.endswith("fgd.py")]
UET_RUNS = [name for name in COCO_RUNS if name.endswith("uet_fgd.py")]
METHODS = ["common/fgd.py", "common/uet.py", "common/pgd.py", "common/rm_pfi.py"]
DISTILLED = [name for name in COCO_RUNS if re.search(r"_(fgd|pgd|rm_pfi)\.py$", name)]
ALONE = [n for n in FILES if n not in (*METHODS, *DISTILLED) and not n.startswith("demo/")]

# FGD's released settings: tau, alpha, beta, gamma, lambda, strides by level, learning rate.
ONE_STAGE = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
TWO_STAGE = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
RELEASED = {
    "retinanet": (0.5, 0.001, 0.0005, 0.0005, 0.000005, ONE_STAGE, 0.01),
    "fcos": (0.8, 0.0016, 0.0008, 0.0008, 0.000008, ONE_STAGE, 0.01),
    "faster_rcnn": (0.5, 0.00005, 0.000025, 0.00005, 0.0000005, TWO_STAGE, 0.02),
    "mask_rcnn": (0.5, 0.00005, 0.000025, 0.00005, 0.0000005, TWO_STAGE, 0.02),
}
# Tensors outside the bottom-up backbone: the student inherits all of them.
INHERITED = {"retinanet": 36, "fcos": 54, "faster_rcnn": 30, "mask_rcnn": 42}


@pytest.fixture(autouse=True, scope="module")
def _as_train_net():
    register_all()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # paths in configs are relative to the checkout
        patch.setattr(DatasetCatalog, "get", lambda name: [{}])  # COCO need not lie here
        patch.setattr("d2kd.build.instantiate", hollow)
        yield


def load(name: str, *overrides: str) -> DictConfig:
    return load_config(f"configs/{name}", ["train.device=cpu", *overrides])


def alone(name: str) -> str:
    """The student's own config beside a distilled one."""
    return re.sub(r"((_uet)?_fgd|_pgd|_rm_pfi)\.py$", ".py", name)


def hollow(node: DictConfig) -> torch.nn.Module:
    """Instantiate, but the bottom-up network without numbers, for which most of the time goes."""
    node = node.copy()
    OmegaConf.resolve(node)  # other fields may refer to those of the bottom-up network
    bottom_up = OmegaConf.select(node, "backbone.bottom_up")
    if bottom_up is not None:
        with torch.device("meta"):
            node.backbone.bottom_up = instantiate(bottom_up)
    return instantiate(node)


_built: dict[str, torch.nn.Module] = {}


def _once(key: str, make) -> torch.nn.Module:
    """Configs beside each other share detectors, each of which takes seconds to build."""
    if key not in _built:
        while len(_built) > 2:
            _built.pop(next(iter(_built)))
        _built[key] = make()
    return _built[key]


def build(cfg: DictConfig) -> torch.nn.Module:
    """The config's model, without weights."""
    node = cfg.model.copy()
    if "student" not in node:
        return _once(repr(node), lambda: hollow(node))
    student = node.student
    node.student = _once(repr(student), lambda: hollow(student))
    if node.get("teacher"):
        source = node.teacher.model
        node.teacher.weights = None
        node.teacher.model = _once(
            f"teacher {source!r}", lambda: Teacher(instantiate(source), None).model
        )
    return instantiate(node)


@pytest.mark.parametrize("name", RUNS)
def test_loads_and_builds(name):
    cfg = load(name)
    check_config(cfg)
    model = build(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    multiplier = instantiate(cfg.lr_multiplier)
    assert 0 < multiplier(0.5) <= 1
    image_format = cfg.dataloader.train.mapper.image_format
    assert cfg.dataloader.test.mapper.image_format == image_format
    assert getattr(model, "input_format", image_format) == image_format


@pytest.fixture(scope="module", params=FGD_RUNS)
def distilled(request, _as_train_net) -> tuple[str, Distiller]:
    """The name of a detector, and a distiller for it."""
    return request.param.split("/")[0], build(load(request.param))


def test_fgd_is_as_released(distilled):
    detector, model = distilled
    tau, alpha, beta, gamma, lambd, strides, _ = RELEASED[detector]
    fgd = model.distillation.fgd
    assert (fgd.tau, fgd.weight) == (tau, 1)
    assert (fgd.alpha, fgd.beta, fgd.gamma, fgd.lambd) == (alpha, beta, gamma, lambd)
    assert {pair.student: pair.student_shape.stride for pair in fgd.pairs} == strides
    assert {pair.teacher: pair.teacher_shape.stride for pair in fgd.pairs} == strides


def test_student_learns_from_r101_and_inherits_neck_and_head(distilled):
    detector, model = distilled
    teacher = model.teacher.model
    blocks = [len(net.backbone.bottom_up.res4) for net in (model.student, teacher)]
    assert blocks == [6, 23]  # of a ResNet-50 and a ResNet-101
    own, given = model.student.state_dict(), teacher.state_dict()
    names = {k for k in given if not k.startswith("backbone.bottom_up.")}
    assert len(names) == INHERITED[detector]
    assert names == {k for k in own if not k.startswith("backbone.bottom_up.")}
    assert all(torch.equal(own[k], given[k]) for k in names)


def test_student_and_teacher_see_the_pixels_they_were_made_for(distilled):
    # The weights, Caffe's for ImageNet, take BGR in [0, 255]; FCOS has no `input_format` to say so.
    _, model = distilled
    assert (model.input_format, model.teacher.input_format) == ("BGR", "BGR")
    for net in (model.student, model.teacher.model):
        assert net.pixel_mean.flatten().tolist() == pytest.approx([103.53, 116.28, 123.675])
        assert net.pixel_std.flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", [name for name in COCO_RUNS if "_2x" in name])
def test_schedule_is_24_epochs_with_drops_after_16_and_22(name):
    cfg = load(name)
    assert cfg.optimizer.lr == RELEASED[name.split("/")[0]][-1]
    epoch = 7330  # ceil(117,266 / 16)
    assert cfg.dataloader.train.total_batch_size == 16
    assert cfg.train.max_iter == 175_920 == 24 * epoch
    assert cfg.train.clip_grad_norm == 35
    scheduler = instantiate(cfg.lr_multiplier)
    expected = {0: 0.001, 500: 0.5, 1000: 1, 16 * epoch - 1: 1, 16 * epoch + 1: 0.1}
    expected |= {22 * epoch - 1: 0.1, 22 * epoch + 1: 0.01, 24 * epoch - 1: 0.01}
    for step, value in expected.items():
        assert scheduler(step / cfg.train.max_iter) == pytest.approx(value, abs=1e-3), step


@pytest.mark.parametrize("name", DISTILLED)
def test_only_the_distiller_is_added_to_the_student(name):
    distilled, student = load(name), load(alone(name))
    assert next(iter(distilled.model)) == "student"  # before anything else draws random numbers
    distilled.model = distilled.model.student
    distilled.train.output_dir = student.train.output_dir
    assert distilled == student


@pytest.mark.parametrize("name", UET_RUNS)
def test_uet_only_adds_its_uncertainty(name):
    uet, fgd = load(name), load(name.replace("_uet", ""))
    node = uet.model.methods.fgd.pop("uncertainty")
    stage = instantiate(node)
    assert isinstance(stage, MCDropout)
    assert (stage.rates, stage.combine) == ((0.15, 0.2, 0.25, 0.3, 0.35), "sum")
    uet.train.output_dir = fgd.train.output_dir
    assert uet == fgd


def test_distilled_student_starts_as_it_does_alone():
    name = "retinanet/retinanet_R_50_FPN_2x_fgd.py"
    cfg = load(name, "model.inherit=False", "model.teacher.weights=null")
    torch.manual_seed(1)
    distiller = instantiate(cfg.model)
    torch.manual_seed(1)
    student = instantiate(load(alone(name)).model).state_dict()
    assert {k for k in distiller.state_dict() if not k.startswith("distillation.")} == set(student)
    for key, value in student.items():
        assert torch.equal(distiller.state_dict()[key], value), key


def test_fcos_teacher_is_what_its_config_trains():
    teacher = load("fcos/fcos_R_50_FPN_2x_fgd.py").model.teacher
    cfg, student = LazyConfig.load(teacher.model), load("fcos/fcos_R_50_FPN_2x.py")
    assert teacher.weights == f"{cfg.train.output_dir}/model_final.pth"
    assert cfg.train.init_checkpoint.endswith("R-101.pkl")
    cfg.model.backbone.bottom_up.stages.depth = 50
    assert cfg.model == student.model
    assert cfg.optimizer == student.optimizer


@pytest.mark.parametrize("name", [n for n in FGD_RUNS if not n.startswith("fcos")])
def test_zoo_keeps_weights_for_the_teacher(name):
    teacher = load(name).model.teacher
    assert teacher.weights == "zoo"
    assert get_checkpoint_url(teacher.model).endswith(".pkl")


def test_overrides_reach_the_methods():
    cfg = load(
        "retinanet/retinanet_R_50_FPN_2x_uet_fgd.py",
        "model.methods.fgd.weight=0.5",
        "model.methods.fgd.uncertainty.combine=mean",
        "model.methods.fgd.uncertainty.rates=[0.25,0.25]",
        "model.teacher.dtype=float16",
        "train.amp.enabled=True",
    )
    check_config(cfg)
    fgd = instantiate(cfg.model.methods).fgd
    assert fgd.weight == 0.5
    assert (fgd.uncertainty.combine, fgd.uncertainty.rates) == ("mean", (0.25, 0.25))
    assert cfg.model.teacher.dtype == "float16"


@pytest.mark.parametrize("name", ALONE)
def test_students_and_teachers_alone_need_no_distillation(name):
    text = (ROOT / "configs" / name).read_text()
    others = r"^\s*(from|import) d2kd(?!\.(detectors|crowdhuman_evaluation)\b)"
    assert not re.search(others + r"|common\.(fgd|uet|pgd|rm_pfi)\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("demo/")])
def test_configs_stay_short(name):
    assert len((ROOT / "configs" / name).read_text().splitlines()) <= 40
