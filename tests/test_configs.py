"""Every config loads, passes its checks and builds. The COCO recipes have the published values."""

from __future__ import annotations

import ast
import copy
import functools
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog
from detectron2.model_zoo import get_checkpoint_url
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import fpn
from detectron2.structures import BitMasks, Boxes, Instances
from omegaconf import DictConfig, OmegaConf

from d2kd import Distiller, Teacher
from d2kd.config import check_config, load_config
from d2kd.data import register_all
from d2kd.methods import CWD, LD, MGD, PKD, CrossKD, MCDropout

ROOT = Path(__file__).parents[1]
# Configs with pseudo labels, of real photographs and of a user's data have test files of their
# own, test_pseudo_configs.py, test_real_configs.py and test_my_data_configs.py.
FILES = sorted(
    str(p.relative_to(ROOT / "configs"))
    for p in (ROOT / "configs").rglob("*.py")
    if not {"pseudo", "real", "my_data"}.intersection(p.relative_to(ROOT / "configs").parts)
)
DEMO = ("demo/", "experiments/")
# Configs that train_net.py can run. Other files are only imported.
RUNS = [name for name in FILES if "common" not in name]
COCO_RUNS = [name for name in RUNS if not name.startswith(DEMO)]
METHOD_NAMES = ["fgd", "mgd", "pkd", "cwd", "ld", "crosskd", "pgd", "rm_pfi"]
METHOD = re.compile(rf"(_cascade|_swin|_uet|_dinov3|_convnext)?_({'|'.join(METHOD_NAMES)})\.py$")
DISTILLED = [name for name in COCO_RUNS if METHOD.search(name)]
PSEUDO_COCO = ["share", "pseudo", "finetune", "labels"]
# Students that are Detectron2's own detectors, and their schedules.
PLAIN = [(d, "2x") for d in ("retinanet", "fcos", "faster_rcnn", "mask_rcnn", "cascade_rcnn")]
PLAIN += [("fcos", "1x")]
UET_RUNS = [name for name in DISTILLED if "_uet_" in name]
# Recipes in which R50 learns from R101 of the same detector.
FGD_RUNS = [name for name in DISTILLED if re.search(r"_R_50_FPN_\dx(_bs16)?_fgd\.py$", name)]
SMALL_RUNS = [name for name in DISTILLED if re.search(r"(_R_18|_R_34|mobilenet).*x.*_fgd", name)]
ALONE = [n for n in FILES if n not in DISTILLED and not n.startswith(DEMO)]

# FGD's released settings: tau, alpha, beta, gamma, lambda, strides by level, learning rate.
ONE_STAGE = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
TWO_STAGE = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
RELEASED = {
    "retinanet": (0.5, 0.001, 0.0005, 0.0005, 0.000005, ONE_STAGE, 0.01),
    "gfl": (0.5, 0.001, 0.0005, 0.0005, 0.000005, ONE_STAGE, 0.01),
    "fcos": (0.8, 0.0016, 0.0008, 0.0008, 0.000008, ONE_STAGE, 0.01),
    "faster_rcnn": (0.5, 0.00005, 0.000025, 0.00005, 0.0000005, TWO_STAGE, 0.02),
    "mask_rcnn": (0.5, 0.00005, 0.000025, 0.00005, 0.0000005, TWO_STAGE, 0.02),
    # No values are published for it. The recipes use those of Faster R-CNN.
    "cascade_rcnn": (0.5, 0.00005, 0.000025, 0.00005, 0.0000005, TWO_STAGE, 0.02),
}
# Numbers of tensors outside the bottom-up network. The student inherits all of them.
INHERITED = {
    "retinanet": 36,
    "fcos": 54,
    "faster_rcnn": 30,
    "mask_rcnn": 42,
    "gfl": 45,
    "cascade_rcnn": 46,  # two stages more, with two fully connected layers and two outputs each
}

# Small students: channels of res3 to res5, and numbers of blocks in a ResNet's stages.
SMALL = {
    "R_18": ([128, 256, 512], [2, 2, 2, 2]),
    "R_34": ([128, 256, 512], [3, 4, 6, 3]),
    "mobilenet_v2": ([32, 96, 1280], None),
}
# The R101 that teaches most students of a detector.
R101 = {
    "retinanet": "COCO-Detection/retinanet_R_101_FPN_3x.yaml",
    "faster_rcnn": "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
    "gfl": "gfl_R_101_FPN_2x_ms.py",
}
# Published settings of other methods: values, levels, and whether neck and head are inherited.
P3_TO_P6, P3_TO_P7 = ["p3", "p4", "p5", "p6"], ["p3", "p4", "p5", "p6", "p7"]
P2_TO_P5, P2_TO_P6 = ["p2", "p3", "p4", "p5"], ["p2", "p3", "p4", "p5", "p6"]
ONE_STAGE_MGD = (MGD, {"mask": 0.65, "alpha": 0.00002, "weight": 1})
OTHERS = {
    "retinanet/retinanet_R_50_FPN_2x_mgd.py": (*ONE_STAGE_MGD, P3_TO_P7, True),
    "retinanet/retinanet_R_50_FPN_2x_pkd.py": (PKD, {"weight": 10}, P3_TO_P6, False),
    "retinanet/retinanet_R_50_FPN_2x_cwd.py": (CWD, {"weight": 10, "tau": 1}, P3_TO_P7, False),
    "faster_rcnn/faster_rcnn_R_50_FPN_2x_mgd.py": (
        *(MGD, {"mask": 0.45, "alpha": 0.0000005, "weight": 1}),
        *(P2_TO_P5, False),
    ),
    "faster_rcnn/faster_rcnn_R_50_FPN_2x_pkd.py": (PKD, {"weight": 6}, P2_TO_P5, False),
    "faster_rcnn/faster_rcnn_R_50_FPN_2x_cwd.py": (CWD, {"weight": 10, "tau": 1}, P2_TO_P6, False),
    "gfl/gfl_R_50_FPN_1x_bs16_pkd.py": (PKD, {"weight": 6}, P3_TO_P6, False),
    "gfl/gfl_R_50_FPN_1x_bs16_cwd.py": (CWD, {"weight": 10, "tau": 1}, P3_TO_P7, False),
    "gfl/gfl_R_50_FPN_1x_bs16_ld.py": (
        *(LD, {"main": 0.25, "valuable": 0.25, "classification": 10, "tau": 10, "class_tau": 2}),
        *(None, False),
    ),
    "gfl/gfl_R_50_FPN_1x_bs16_crosskd.py": (
        *(CrossKD, {"block": 3, "classification": 1, "regression": 1, "gamma": 1, "weight": 1}),
        *(None, False),
    ),
}


def docs(name: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / "configs" / name).read_text())) or ""


@pytest.fixture(autouse=True, scope="module")
def _as_train_net():
    register_all()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the names of configs below are relative to the checkout
        patch.setattr(DatasetCatalog, "get", lambda name: [{}])  # the tests do not need COCO
        patch.setattr("d2kd.loading.instantiate", hollow)
        patch.setattr("d2kd.yacs_config.build_model", hollow_zoo)
        resnet = fpn.build_resnet_backbone
        patch.setattr(fpn, "build_resnet_backbone", lambda *args: on_meta(resnet, *args))
        yield


def load(name: str, *overrides: str) -> DictConfig:
    return copy.deepcopy(_load(name, *overrides))


@functools.cache
def _load(name: str, *overrides: str) -> DictConfig:
    return load_config(f"configs/{name}", ["train.device=cpu", *overrides])


def alone(name: str) -> str:
    """The config of the student alone that belongs to a distilled recipe."""
    return METHOD.sub(".py", name)


def hollow(node: DictConfig) -> torch.nn.Module:
    """Instantiate with a empty bottom-up network: its values would take most of the time."""
    node = node.copy()
    OmegaConf.resolve(node)  # other fields may refer to those of the bottom-up network
    bottom_up = OmegaConf.select(node, "backbone.bottom_up")
    if bottom_up is not None:
        if "pretrained" in bottom_up:
            bottom_up.pretrained = False
        node.backbone.bottom_up = on_meta(instantiate, bottom_up)
    return instantiate(node)


def hollow_zoo(cfg) -> torch.nn.Module:
    """Detectron2's build_model for a yacs config, without moving the model to a device."""
    # Deformable convolutions need Detectron2's compiled operators. The tests do not need them.
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def on_meta(make, *args) -> torch.nn.Module:
    with torch.device("meta"):
        return make(*args)


_built: dict[str, torch.nn.Module] = {}


def _once(key: str, make) -> torch.nn.Module:
    """Build a detector once for successive configs that share it: building takes seconds."""
    if key not in _built:
        while len(_built) > 2:
            _built.pop(next(iter(_built)))
        _built[key] = make()
    return _built[key]


def build(cfg: DictConfig) -> torch.nn.Module:
    """The model of a config, without loading weights."""
    node = cfg.model.copy()
    if "student" not in node:
        return _once(repr(node), lambda: hollow(node))
    student = node.student
    node.student = _once(repr(student), lambda: hollow(student))
    if node.get("teacher"):
        node.teacher.weights = None
    if "model" in (node.get("teacher") or ()):
        source = node.teacher.model
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
    # GFL starts from torchvision's weights. The others start from Caffe's ImageNet weights, which
    # take BGR in [0, 255]. FCOS has no field `input_format`.
    detector, model = distilled
    order = "RGB" if detector == "gfl" else "BGR"
    assert (model.input_format, model.teacher.input_format) == (order, order)
    for net in (model.student, model.teacher.model):
        (check_rgb if order == "RGB" else check_bgr)(net)


def check_bgr(net):
    assert net.pixel_mean.flatten().tolist() == pytest.approx([103.53, 116.28, 123.675])
    assert net.pixel_std.flatten().tolist() == [1, 1, 1]


def check_rgb(net):
    assert net.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert net.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_are_as_published(name):
    kind, values, levels, inherit = OTHERS[name]
    node = load(name).model
    (method,) = instantiate(node.methods).values()
    assert type(method) is kind
    assert {key: getattr(method, key) for key in values} == values
    if levels:
        assert list(method.levels) == levels
    assert node.inherit is inherit
    assert node.teacher.model.endswith(R101[name.split("/")[0]])


def test_cascade_mask_rcnn_teaches_faster_rcnn_its_features():
    name = "faster_rcnn/faster_rcnn_R_50_FPN_2x_cascade_fgd.py"
    assert get_checkpoint_url(load(name).model.teacher.model).endswith(".pkl")
    model = build(load(name))
    fgd = model.distillation.fgd
    tau, alpha, beta, gamma, lambd, strides, _ = RELEASED["faster_rcnn"]
    assert (fgd.tau, fgd.alpha, fgd.beta, fgd.gamma, fgd.lambd) == (tau, alpha, beta, gamma, lambd)
    assert {pair.teacher: pair.teacher_shape.stride for pair in fgd.pairs} == strides
    assert not any(fgd.adapters.parameters())
    teacher = model.teacher.model
    assert type(teacher.roi_heads).__name__ == "CascadeROIHeads"
    assert len(teacher.backbone.bottom_up.res4) == 36  # of a ResNet-152
    own, given = model.student.state_dict(), teacher.state_dict()
    kernel = "backbone.fpn_output2.weight"
    assert not torch.equal(own[kernel], given[kernel])  # not inherited


def test_swin_teaches_gfl_its_features():
    model = build(load("gfl/gfl_R_50_FPN_1x_bs16_swin_pkd.py"))
    teacher = model.teacher.model
    channels = [shape.channels for shape in teacher.backbone.bottom_up.output_shape().values()]
    assert channels == [192, 384, 768]  # of Swin-T
    check_rgb(teacher)
    (pkd,) = model.distillation.values()
    assert type(pkd) is PKD
    assert (pkd.weight, [pair.teacher for pair in pkd.pairs]) == (6, P3_TO_P6)


@pytest.mark.parametrize(
    "teacher, strides, channels",
    [("dinov3", [16, 16, 16], [384] * 3), ("convnext", [8, 16, 32], [192, 384, 768])],
)
def test_networks_without_a_detector_teach_retinanet(teacher, strides, channels):
    cfg = load(f"retinanet/retinanet_R_50_FPN_2x_{teacher}_pkd.py")
    assert cfg.model.teacher.weights.startswith("output/imagenet/")
    model = build(cfg)
    check_rgb(model.teacher.model)
    (pkd,) = model.distillation.values()
    assert [pair.student for pair in pkd.pairs] == ["p3", "p4", "p5"]
    assert [pair.teacher_shape.stride for pair in pkd.pairs] == strides
    assert [pair.teacher_shape.channels for pair in pkd.pairs] == channels


@pytest.mark.parametrize("name", [name for name in SMALL_RUNS if "_uet_" not in name])
def test_small_students_learn_from_r101(name):
    model = build(load(name))
    student, teacher = model.student, model.teacher.model
    assert len(teacher.backbone.bottom_up.res4) == 23  # of a ResNet-101
    channels, blocks = SMALL[re.search(r"R_18|R_34|mobilenet_v2", name)[0]]
    bottom_up = student.backbone.bottom_up
    assert [shape.channels for shape in bottom_up.output_shape().values()] == channels
    if blocks:
        assert [len(getattr(bottom_up, f"res{i}")) for i in (2, 3, 4, 5)] == blocks
    check_rgb(student)
    order = model.input_format, model.teacher.input_format
    assert order == ("RGB", "RGB" if "gfl" in name else "BGR")
    own, given = student.state_dict(), teacher.state_dict()
    names = {k for k in given if not k.startswith("backbone.bottom_up.")}
    other = {k for k in names if own[k].shape != given[k].shape}
    # P6 of RetinaNet is made from the bottom-up network's maps.
    top = {"backbone.top_block.p6.weight"} if "retinanet" in name else set()
    assert other == {f"backbone.fpn_lateral{i}.weight" for i in (3, 4, 5)} | top
    assert all(torch.equal(own[k], given[k]) for k in names - other)


@pytest.mark.parametrize("name", [name for name in ALONE if re.search(r"_R_(18|34|101)_", name)])
def test_starts_from_the_weights_of_its_depth(name):
    cfg = load(name)
    depth = cfg.model.backbone.bottom_up.stages.depth
    assert f"_R_{depth}_" in name
    assert cfg.train.init_checkpoint.endswith(f"R-{depth}.pkl")
    torchvision = "MSRA" not in cfg.train.init_checkpoint
    assert torchvision == (cfg.dataloader.train.mapper.image_format == "RGB")


@pytest.mark.parametrize("name", [n for n in COCO_RUNS if "_2x" in n and "gfl" not in n])
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
    """The recipes repeat their settings: data, schedule and optimizer agree field for field."""
    distilled, student = load(name), load(alone(name))
    assert next(iter(distilled.model)) == "student"  # before anything else draws random numbers
    distilled.model = distilled.model.student
    distilled.train.output_dir = student.train.output_dir
    assert distilled == student


@pytest.mark.parametrize("name", UET_RUNS)
def test_uet_only_adds_its_uncertainty(name):
    uet, base = load(name), load(name.replace("_uet", ""))
    (method,) = uet.model.methods.keys() - {"_target_"}
    stage = instantiate(uet.model.methods[method].pop("uncertainty"))
    assert isinstance(stage, MCDropout)
    assert (stage.rates, stage.combine) == ((0.15, 0.2, 0.25, 0.3, 0.35), "sum")
    uet.train.output_dir = base.train.output_dir
    assert uet == base


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


@pytest.mark.parametrize("detector", ["fcos", "cascade_rcnn"])
def test_teacher_is_what_its_config_trains(detector):
    name = f"{detector}/{detector}_R_50_FPN_2x"
    teacher = load(f"{name}_fgd.py").model.teacher
    cfg, student = LazyConfig.load(teacher.model), load(f"{name}.py")
    assert teacher.weights == f"{cfg.train.output_dir}/model_final.pth"
    assert cfg.train.init_checkpoint.endswith("R-101.pkl")
    cfg.model.backbone.bottom_up.stages.depth = 50
    assert cfg.model == student.model
    assert cfg.optimizer == student.optimizer


@pytest.mark.parametrize("name", [n for n in FGD_RUNS if re.match("retinanet|faster|mask", n)])
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
    others = r"^\s*(from|import) d2kd(?!\.(backbones|detectors|evaluation\.crowdhuman)\b)"
    assert not re.search(others, text, re.MULTILINE)
    assert not re.search(rf"^from .*_({'|'.join(METHOD_NAMES)})\b", text, re.MULTILINE)


def imported(file: Path) -> set[Path]:
    """A config and all config files that it imports, directly or through others."""
    files = {file}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            files |= imported(file.parents[node.level - 1] / f"{node.module.replace('.', '/')}.py")
    return files


@pytest.mark.parametrize("name", [*COCO_RUNS, *(f"pseudo/coco/{x}.py" for x in PSEUDO_COCO)])
def test_a_recipe_is_read_in_three_files(name):
    files = imported(ROOT / "configs" / name)
    assert len(files) <= 3, sorted(str(x.relative_to(ROOT)) for x in files)


@pytest.mark.parametrize("name", [n for n in COCO_RUNS if "needs no d2kd" in docs(n).lower()])
def test_a_plain_recipe_loads_where_d2kd_is_not_installed(name, monkeypatch):
    for module in list(sys.modules):
        if module == "d2kd" or module.startswith("d2kd."):
            monkeypatch.setitem(sys.modules, module, None)
    assert LazyConfig.load(f"configs/{name}").model


def test_all_students_of_detectron2_need_no_d2kd():
    plain = {n for n in COCO_RUNS if "needs no d2kd" in docs(n).lower()}
    assert plain == {f"{d}/{d}_R_50_FPN_{x}.py" for d, x in PLAIN}


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(DEMO)])
def test_configs_stay_short(name):
    assert len((ROOT / "configs" / name).read_text().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTILLED)
def test_takes_a_step(name, monkeypatch):
    """The weights are random: this tests that a step works, not its values."""
    monkeypatch.setitem(globals(), "on_meta", lambda make, *args: make(*args))
    node = load(name, "model.teacher.weights=null").model
    node.student = hollow(node.student)
    model = instantiate(node).train()
    for net in (model.student, model.teacher.model):
        net.pixel_std.mul_(1000)  # a hundred layers with random weights amplify their input
    truth = Instances((96, 128))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 60.0, 72.0], [70.0, 20.0, 120.0, 90.0]]))
    truth.gt_classes = torch.zeros(2, dtype=torch.long)  # class 0, which every data set has
    if "mask" in name.split("/")[0]:
        truth.gt_masks = BitMasks(torch.ones(2, 96, 128, dtype=torch.bool))
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    losses = model([{"image": image, "instances": truth, "height": 96, "width": 128}])
    added = {f"loss_distill_{method}" for method in model.distillation}
    assert added and added <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for key, parameter in model.distillation.named_parameters():
        assert parameter.grad is not None, key
