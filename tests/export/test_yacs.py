"""The older YAML config: Detectron2 alone builds the same detector from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.modeling.backbone import resnet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from omegaconf import OmegaConf
from torch import nn

from d2kd import load_student_config
from d2kd.export import run
from d2kd.export.source import Source
from d2kd.export.yacs import CannotSayError, make_yacs, write_yacs
from d2kd.model_zoo import Detector
from d2kd.tools import export
from tests import toys
from tests.export.conftest import retinanet, spread_scores

RESIZE = T.ResizeShortestEdge(96, 128)

CONFIG = """
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, get_detection_dataset_dicts

from tests import toys
from tests.export.conftest import retinanet

model = L({model})()
train = dict(device="cpu")
dataloader = dict(
    test=dict(
        dataset=L(get_detection_dataset_dicts)(names="never_registered"),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=96, max_size=128)],
            image_format="RGB",
        ),
    ),
)
"""


def source(model: nn.Module, *, augmentations=(RESIZE,), node=None, names=()) -> Source:
    """A student as `open_source` gives it, without files."""
    detector = SimpleNamespace(
        model=model.eval(),
        input_format="BGR",
        augmentations=T.AugmentationList(list(augmentations)),
    )
    cfg = {"model": node or {}, "dataloader": {"test": {"dataset": {"names": list(names)}}}}
    return Source("student", detector, OmegaConf.create(cfg), "", None)


def reason(model: nn.Module, folder=None, **fields) -> str:
    """Why the config of a detector cannot be written."""
    given = source(model, **fields)
    with pytest.raises(CannotSayError) as error:
        make_yacs(given) if folder is None else write_yacs(given, folder)
    return str(error.value)


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), pixels)
    return tmp_path / "picture.png"


@pytest.fixture
def arguments(tmp_path, picture):
    """A function that gives the command line for a kind of student, after it wrote its files."""

    def write(name: str) -> list[str]:
        torch.manual_seed(0)
        kind = retinanet if name == "retinanet" else getattr(toys, name.removeprefix("toys."))
        torch.save({"model": spread_scores(kind()).state_dict()}, tmp_path / "student.pth")
        (tmp_path / "student.py").write_text(CONFIG.format(model=name))
        files = ["--weights", str(tmp_path / "student.pth"), "--images", str(picture)]
        return [str(tmp_path / "student.py"), *files, "--output", str(tmp_path / "out")]

    return write


@pytest.mark.parametrize(
    "name", ["retinanet", "toys.rcnn", pytest.param("toys.cascade", marks=pytest.mark.slow)]
)
def test_the_default_predictor_finds_what_the_student_finds(
    name, arguments, picture, tmp_path, monkeypatch
):
    argv = arguments(name)
    assert export.main([*argv, "--formats", "yacs"]) == 0
    folder = tmp_path / "out"
    names = {"config.yaml", "config_yacs.yaml", "model.pth", "README.md", "model_card.json"}
    assert {x.name for x in folder.iterdir()} == names
    assert str(tmp_path) not in (folder / "config_yacs.yaml").read_text()
    monkeypatch.chdir(folder)  # MODEL.WEIGHTS is relative
    cfg = get_cfg()
    cfg.merge_from_file("config_yacs.yaml")
    cfg.MODEL.DEVICE = "cpu"
    assert cfg.DATASETS.TEST == ("never_registered",) and cfg.INPUT.FORMAT == "RGB"
    found = DefaultPredictor(cfg)(cv2.imread(str(picture)))["instances"]
    expected = Detector(argv[0], argv[2], device="cpu")(picture)
    assert len(found) == len(expected) > 5 and found.image_size == (50, 80)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    boxes = found.pred_boxes.tensor, expected.pred_boxes.tensor
    torch.testing.assert_close(*boxes, atol=1e-3, rtol=0)
    card = json.loads((folder / "model_card.json").read_text())
    check = card["files"]["config_yacs.yaml"]["check"]
    assert check["images"] == 4 and check["detections"] > 5 and check["unmatched"] == 0


def test_the_lines_of_the_card_run(arguments, picture, tmp_path, monkeypatch):
    assert export.main([*arguments("toys.rcnn"), "--formats", "yacs"]) == 0
    monkeypatch.chdir(tmp_path / "out")
    Path("image.jpg").write_bytes(picture.read_bytes())  # PNG under this name has no loss
    names: dict = {}
    results = []
    for snippet in Path("README.md").read_text().split("```python\n")[1:]:
        exec(snippet.split("```")[0], names)
        if "boxes" in names:  # the first snippet reads the picture
            results.append([names.pop(x) for x in ("boxes", "scores", "classes")])
    checkpoint, predictor = results
    assert len(checkpoint[1]) > 0
    torch.testing.assert_close(checkpoint, predictor, atol=1e-3, rtol=0)


# Values that are no defaults, so that a key that is forgotten is seen. What is left out here is
# different in the configs of Detectron2's model zoo below.
SHARED = {
    "MODEL.PIXEL_MEAN": [110.5, 115.25, 120.125],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.3, 1.0, 1.7]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.FPN.NORM": "GN",
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.FPN.FUSE_TYPE": "avg",
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.BACKBONE.FREEZE_AT": 3,
    "TEST.DETECTIONS_PER_IMAGE": 42,
}
RETINANET = {
    "MODEL.RETINANET.NUM_CLASSES": 7,
    "MODEL.RETINANET.NUM_CONVS": 3,
    "MODEL.RETINANET.NORM": "BN",
    "MODEL.RETINANET.IOU_THRESHOLDS": [0.35, 0.6],
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.11,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 345,
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.62,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (2.0, 2.0, 3.0, 3.0),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 1.5,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.3,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.2,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou",
}
RCNN = {
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 3,
    "MODEL.RPN.CONV_DIMS": [-1, 48],
    "MODEL.RPN.BOUNDARY_THRESH": 5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.2, 0.6],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 128,
    "MODEL.RPN.POSITIVE_FRACTION": 0.3,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.5,
    "MODEL.RPN.BBOX_REG_WEIGHTS": (2.0, 2.0, 3.0, 3.0),
    "MODEL.RPN.SMOOTH_L1_BETA": 0.1,
    "MODEL.RPN.LOSS_WEIGHT": 2.0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 701,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 702,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 703,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 704,
    "MODEL.RPN.NMS_THRESH": 0.65,
    "MODEL.ROI_HEADS.NUM_CLASSES": 7,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.45],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.4,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.11,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.62,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "diou",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.5,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (8.0, 8.0, 4.0, 4.0),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 24,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
}
SMALL = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
SCALED = {
    "MODEL.RESNETS.NUM_GROUPS": 2,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
}
ROI_POOL = {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool", "MODEL.RESNETS.DEPTH": 34}


def configs():
    """Name, changes to it."""
    detection = "COCO-Detection"
    fpn, dense = f"{detection}/faster_rcnn_R_50_FPN_1x.yaml", f"{detection}/retinanet_R_50_FPN_1x"
    yield dense + ".yaml", {**SMALL, **SHARED, **RETINANET}
    yield fpn, {**SMALL, **SHARED, **RCNN}
    yield f"{detection}/faster_rcnn_R_50_DC5_1x.yaml", SCALED
    yield "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml", {"MODEL.RESNETS.DEFORM_NUM_GROUPS": 2}
    for name, changes in (
        (fpn, {**SMALL, **ROI_POOL}),
        (f"{detection}/faster_rcnn_R_50_C4_1x.yaml", {}),
        (f"{detection}/faster_rcnn_R_101_FPN_3x.yaml", {}),
        (f"{detection}/faster_rcnn_X_101_32x8d_FPN_3x.yaml", {}),
        (f"{detection}/retinanet_R_101_FPN_3x.yaml", {}),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", {"MODEL.ROI_HEADS.NUM_CLASSES": 1}),
        ("Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml", {}),
        ("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml", {}),
        ("Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml", {}),
        ("Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml", {}),
        ("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml", {}),
    ):
        yield pytest.param(name, changes, marks=pytest.mark.slow)


class Deformable(nn.Conv2d):
    """Stands for Detectron2's deformable convolutions, which need its compiled extension."""

    def __init__(self, *args, deformable_groups=1, norm=None, **fields):
        super().__init__(*args, **fields)
        self.deformable_groups, self.norm = deformable_groups, norm


def rounded(value):
    """Numbers in five digits: the anchors' sizes have gone through fp32."""
    if isinstance(value, CfgNode):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


@pytest.mark.parametrize(("name", "changes"), configs())
def test_a_config_of_detectron2_comes_back(name, changes, monkeypatch):
    for kind in ("DeformConv", "ModulatedDeformConv"):
        monkeypatch.setattr(resnet, kind, Deformable)
    cfg = model_zoo.get_config(name)
    cfg.MODEL.MASK_ON = False
    cfg.merge_from_list([x for change in changes.items() for x in change])
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    frozen = {"freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}
    node = {"backbone": {**frozen, "bottom_up": frozen}}
    given = source(model, augmentations=[resize], node=node, names=cfg.DATASETS.TEST)
    found = make_yacs(given)
    for other in (cfg, found):
        # Of the checkpoint, of the machine, and of a head that is not there.
        for key in ("WEIGHTS", "DEVICE", "ROI_MASK_HEAD"):
            del other.MODEL[key]
        other.INPUT = CfgNode({k: v for k, v in other.INPUT.items() if "TEST" in k or "FOR" in k})
        other.TEST = CfgNode({"DETECTIONS_PER_IMAGE": other.TEST.DETECTIONS_PER_IMAGE})
        other.DATASETS = CfgNode({"TEST": other.DATASETS.TEST})
    for section in ("MODEL", "INPUT", "TEST", "DATASETS"):
        assert rounded(found[section]) == rounded(cfg[section])


def test_frozen_stages_are_seen_without_the_config():
    """A batch norm is frozen by Detectron2 where the stage is; a frozen one says nothing."""
    model = retinanet()
    assert make_yacs(source(model)).MODEL.BACKBONE.FREEZE_AT == 0
    model.backbone.bottom_up.freeze(2)
    assert make_yacs(source(model)).MODEL.BACKBONE.FREEZE_AT == 2


@pytest.mark.parametrize(
    ("augmentations", "size"),
    [([], (0, 1333)), ([T.ResizeShortestEdge([640, 640], 1000, "choice")], (640, 1000))],
)
def test_the_size_of_test_images(augmentations, size):
    found = make_yacs(source(toys.rcnn(), augmentations=augmentations)).INPUT
    assert size == (found.MIN_SIZE_TEST, found.MAX_SIZE_TEST)


@pytest.mark.parametrize(
    "augmentations",
    [
        [T.Resize((96, 96))],
        [RESIZE, T.RandomFlip()],
        [T.ResizeShortestEdge((90, 96), 128)],
        [T.ResizeShortestEdge(96, 128, interp=0)],
    ],
)
def test_other_test_images_are_refused(augmentations):
    found = reason(toys.rcnn(), augmentations=augmentations)
    assert found.startswith("its test images are changed by something else than one bilinear")


class OwnHead(RetinaNetHead):
    pass


def test_what_has_no_keys_is_named():
    only = "and there are keys for RetinaNet and GeneralizedRCNN only"
    assert reason(toys.fcos()) == f"its detector is FCOS, {only}"
    assert reason(toys.point("GFL")) == f"its detector is GFL, {only}"
    masks = "it has a mask head, and the check compares boxes only"
    assert reason(toys.rcnn(mask=True)) == masks
    blocks = "its ResNet has 1, 1, 1, 1 blocks (BasicBlock) in its stages, and there are keys for"
    assert reason(toys.retinanet()).startswith(blocks)
    model = retinanet()
    model.head.__class__ = OwnHead
    assert reason(model).startswith("its head is OwnHead, and there are keys for RetinaNetHead")
    model = retinanet()
    model.backbone.bottom_up = nn.Identity()
    assert reason(model).startswith("its backbone is Identity, and there are keys for ResNet only")
    model = retinanet(anchor_matcher=None)
    assert reason(model) == "its matcher is NoneType, and there are keys for Matcher only"
    model = toys.rcnn()
    model.backbone.top_block = None
    assert reason(model).startswith("its FPN's top block is NoneType, and there are keys for Last")
    model = retinanet()
    model.backbone.bottom_up.res5[1].conv1.norm = nn.InstanceNorm2d(512)
    assert reason(model) == "the norm of its ResNet is InstanceNorm2d, which has no name there"


def test_what_the_config_would_change_is_named(tmp_path):
    model = retinanet()
    model.backbone.top_block = LastLevelP6P7(8, 8, "p5")
    found = "backbone.top_block.in_feature is p5, and becomes res5"
    assert reason(model, tmp_path) == found
    model = retinanet()
    model.backbone._square_pad = 640
    assert reason(model, tmp_path) == "backbone._square_pad is 640, and becomes 0"
    model = toys.rcnn()
    model.roi_heads.box_pooler.canonical_level = 3
    found = "roi_heads.box_pooler.canonical_level is 3, and becomes 4"
    assert reason(model, tmp_path) == found
    model = retinanet()
    model.backbone.bottom_up.stem.conv1.norm.eps = 0.001
    found = "backbone.bottom_up.stem.conv1.norm.eps is 0.001, and becomes 1e-05"
    assert reason(model, tmp_path) == found


def test_what_detectron2_refuses_is_named(tmp_path):
    model = retinanet()
    model.backbone.bottom_up.res2[0].out_channels = 32
    found = "Detectron2 refuses its config (Must set MODEL.RESNETS.RES2_OUT_CHANNELS = 64 for R18"
    assert reason(model, tmp_path).startswith(found)


def test_yacs_that_is_asked_for_and_cannot_be_is_an_error(arguments, tmp_path):
    with pytest.raises(
        ValueError, match=r"--formats yacs: expected a detector .* found that its ResNet has 1, 1"
    ):
        export.main([*arguments("toys.retinanet"), "--formats", "yacs", "safetensors"])
    assert not (tmp_path / "out").exists()


def test_a_config_that_detects_something_else_is_not_written(arguments, tmp_path, monkeypatch):
    write = run.write_yacs

    def write_wrong(source, folder):
        built = write(source, folder)
        built.roi_heads.box_predictor.test_score_thresh = 0.7
        return built

    monkeypatch.setattr(run, "write_yacs", write_wrong)
    monkeypatch.setattr(run, "FORMATS", ("detectron2", "yacs"))
    assert export.main(arguments("toys.rcnn")) == 0
    card = json.loads((tmp_path / "out/model_card.json").read_text())
    assert card["files"].keys() == {"config.yaml", "model.pth"}
    assert not (tmp_path / "out/config_yacs.yaml").exists()
    assert "detections differ, where the student has" in card["left_out"]["config_yacs.yaml"]


def test_a_student_from_a_yacs_config_gets_its_model_back():
    student = load_student_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    model = student.model.config.MODEL
    model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS = 18, 64
    model.BACKBONE.FREEZE_AT, model.FPN.NORM = 1, "GN"
    model.RETINANET.NUM_CLASSES, model.WEIGHTS = 3, "model.pth"
    written = make_yacs(source(instantiate(student.model), node=student.model))
    for section in ("BACKBONE", "RESNETS", "FPN", "RETINANET"):
        expected = OmegaConf.to_container(model[section])
        assert json.loads(json.dumps(written.MODEL[section])) == expected, section
