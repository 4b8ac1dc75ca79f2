"""Read from a detector what Detectron2 would build it from: the keys of its older configs.

Each function is the opposite of a `from_config` in Detectron2. What it gets wrong does not stay
unnoticed: `yacs.write_yacs` builds the detector from the keys, and compares the two.
"""

from __future__ import annotations

import contextlib
import functools
from itertools import takewhile
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d, ROIAlign, get_norm
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from torch import nn
from torchvision.ops import RoIPool

__all__ = [
    "CannotSayError",
    "Keys",
    "backbone_keys",
    "expect",
    "rcnn_keys",
    "retinanet_keys",
    "shorten",
]

DEPTHS = (18, 34, 50, 101, 152)
NORMS = ("FrozenBN", "BN", "SyncBN", "GN", "naiveSyncBN", "LN")

Keys = dict[str, Any]  # "MODEL.FPN.NORM" -> value


class CannotSayError(ValueError):
    """The older config has no keys for a part of the detector; the text is a clause about it."""


def expect(part: str, module: Any, *kinds: type) -> None:
    """Check that a part is exactly of one of some classes: a subclass may compute other things."""
    if type(module) not in kinds:
        names = " and ".join(kind.__name__ for kind in kinds)
        raise CannotSayError(
            f"its {part} is {type(module).__name__}, and there are keys for {names} only"
        )


def shorten(numbers: Any) -> list[float]:
    """Numbers in fp32 as somebody would write them: 103.53 for 103.5299987."""
    return [float(f"{x:.7g}") for x in numbers.flatten().tolist()]


def _norm(part: str, norm: nn.Module | None) -> str:
    """Detectron2's name for a norm."""
    if norm is None:
        return ""
    norm = norm[0] if isinstance(norm, nn.ModuleList) else norm  # one for each level of the head
    for name in NORMS:
        with contextlib.suppress(KeyError):  # release 0.6 lacks LN
            if type(get_norm(name, 32)) is type(norm):
                return name
    raise CannotSayError(
        f"the norm of its {part} is {type(norm).__name__}, which has no name there"
    )


def backbone_keys(backbone: Any, freeze_at: int | None) -> Keys:
    """The keys of a ResNet, or of an FPN on one.

    Args:
        backbone: the module.
        freeze_at: the number of frozen stages in its config; None if it does not say one.
    """
    expect("backbone", backbone, FPN, ResNet)
    if isinstance(backbone, ResNet):
        return {"MODEL.BACKBONE.NAME": "build_resnet_backbone", **_resnet(backbone, freeze_at)}
    expect("FPN's top block", backbone.top_block, LastLevelMaxPool, LastLevelP6P7)
    dense = isinstance(backbone.top_block, LastLevelP6P7)
    name = "build_retinanet_resnet_fpn_backbone" if dense else "build_resnet_fpn_backbone"
    lateral = backbone.lateral_convs[0]
    return {
        "MODEL.BACKBONE.NAME": name,
        "MODEL.FPN.IN_FEATURES": backbone.in_features,
        "MODEL.FPN.OUT_CHANNELS": lateral.out_channels,
        "MODEL.FPN.NORM": _norm("FPN", lateral.norm),
        "MODEL.FPN.FUSE_TYPE": backbone._fuse_type,
        **_resnet(backbone.bottom_up, freeze_at),
    }


def _resnet(resnet: Any, freeze_at: int | None) -> Keys:
    expect("backbone", resnet, ResNet)
    expect("backbone's stem", resnet.stem, BasicStem)
    first, last = resnet.stages[0][0], resnet.stages[-1][-1]
    for stage in resnet.stages:
        expect("residual block", stage[0], BasicBlock, BottleneckBlock, DeformBottleneckBlock)
    counts = [len(stage) for stage in resnet.stages]
    # A detector without res5, as of C4, has the first three numbers only.
    depths = [
        depth
        for depth in DEPTHS
        if _default_counts(depth)[: len(counts)] == counts
        and isinstance(first, BasicBlock) == (depth < 50)
    ]
    if not depths:
        raise CannotSayError(
            f"its ResNet has {', '.join(map(str, counts))} blocks ({type(first).__name__}) in its "
            f"stages, and there are keys for the depths {', '.join(map(str, DEPTHS))} only"
        )
    keys = {
        "MODEL.RESNETS.DEPTH": depths[0],
        "MODEL.RESNETS.OUT_FEATURES": resnet._out_features,
        "MODEL.RESNETS.NORM": _norm("ResNet", last.conv1.norm),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": resnet.stem.out_channels,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": first.out_channels,
        "MODEL.BACKBONE.FREEZE_AT": _frozen(resnet) if freeze_at is None else freeze_at,
    }
    return keys if isinstance(first, BasicBlock) else {**keys, **_bottlenecks(resnet.stages)}


def _bottlenecks(stages: list[Any]) -> Keys:
    first = stages[0][0]
    deformable = [stage[0] for stage in stages if isinstance(stage[0], DeformBottleneckBlock)]
    on = [isinstance(stage[0], DeformBottleneckBlock) for stage in stages]
    groups = first.conv2.groups
    keys: Keys = {
        "MODEL.RESNETS.NUM_GROUPS": groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": first.conv1.out_channels // groups,
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": on + [False] * (4 - len(on)),
        # The stride of res2 is 1, so it does not tell where the stride of a stage is.
        "MODEL.RESNETS.STRIDE_IN_1X1": any(stage[0].conv1.stride != (1, 1) for stage in stages),
    }
    if len(stages) == 4:
        keys["MODEL.RESNETS.RES5_DILATION"] = stages[3][0].conv2.dilation[0]
    if deformable:
        block = deformable[0]
        offsets = 27 if block.deform_modulated else 18  # of a kernel of 3 x 3, for one group
        keys["MODEL.RESNETS.DEFORM_MODULATED"] = block.deform_modulated
        keys["MODEL.RESNETS.DEFORM_NUM_GROUPS"] = block.conv2_offset.out_channels // offsets
    return keys


@functools.cache
def _default_counts(depth: int) -> list[int]:
    """Number of residual blocks in each stage of one of Detectron2's ResNets."""
    stages = ResNet.make_default_stages(depth, block_class=lambda **_: None)
    return [len(stage) for stage in stages]


def _frozen(resnet: Any) -> int:
    """How many first parts have frozen norms, where others have norms that learn."""
    parts = [resnet.stem, *resnet.stages]
    frozen = [any(isinstance(m, FrozenBatchNorm2d) for m in part.modules()) for part in parts]
    return 0 if all(frozen) else len(list(takewhile(bool, frozen)))


def _anchors(generator: Any) -> Keys:
    """Sizes and ratios of anchors, level by level: the ratios of a size follow one another."""
    expect("anchor generator", generator, DefaultAnchorGenerator)
    sizes, ratios = [], []
    for anchors in generator.cell_anchors:
        width, height = (anchors[:, 2:] - anchors[:, :2]).double().unbind(1)
        size, ratio = (width * height).sqrt(), height / width
        count = int(torch.isclose(size, size[0], rtol=1e-6).long().cumprod(0).sum())
        sizes.append(shorten(size[::count]))
        ratios.append(shorten(ratio[:count]))
    return {
        "MODEL.ANCHOR_GENERATOR.SIZES": sizes,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ratios[:1] if ratios[1:] == ratios[:-1] else ratios,
        "MODEL.ANCHOR_GENERATOR.OFFSET": generator.offset,
    }


def _matcher(section: str, matcher: Any) -> Keys:
    expect("matcher", matcher, Matcher)
    return {
        f"{section}.IOU_THRESHOLDS": matcher.thresholds[1:-1],  # without -inf and inf
        f"{section}.IOU_LABELS": matcher.labels,
    }


def _box_loss(section: str, module: Any, beta: str = "SMOOTH_L1_BETA") -> Keys:
    expect("box regression", module.box2box_transform, Box2BoxTransform)
    return {
        f"{section}.BBOX_REG_WEIGHTS": module.box2box_transform.weights,
        f"{section}.BBOX_REG_LOSS_TYPE": module.box_reg_loss_type,
        f"{section}.{beta}": module.smooth_l1_beta,
    }


def retinanet_keys(model: Any) -> Keys:
    """The keys of a RetinaNet without its backbone."""
    section, head = "MODEL.RETINANET", model.head
    expect("head", head, RetinaNetHead)
    layers = list(head.cls_subnet)
    norms = [x for x in layers if not isinstance(x, (nn.Conv2d, nn.ReLU))]
    return {
        f"{section}.NUM_CLASSES": model.num_classes,
        f"{section}.IN_FEATURES": model.head_in_features,
        f"{section}.NUM_CONVS": sum(isinstance(x, nn.Conv2d) for x in layers),
        f"{section}.NORM": _norm("head", norms[0] if norms else None),
        f"{section}.FOCAL_LOSS_ALPHA": model.focal_loss_alpha,
        f"{section}.FOCAL_LOSS_GAMMA": model.focal_loss_gamma,
        f"{section}.SCORE_THRESH_TEST": model.test_score_thresh,
        f"{section}.TOPK_CANDIDATES_TEST": model.test_topk_candidates,
        f"{section}.NMS_THRESH_TEST": model.test_nms_thresh,
        "TEST.DETECTIONS_PER_IMAGE": model.max_detections_per_image,
        **_box_loss(section, model, "SMOOTH_L1_LOSS_BETA"),
        **_matcher(section, model.anchor_matcher),
        **_anchors(model.anchor_generator),
    }


def rcnn_keys(model: Any) -> Keys:
    """The keys of a Faster or Cascade R-CNN without its backbone."""
    expect("proposal generator", model.proposal_generator, RPN)
    expect("ROI heads", model.roi_heads, StandardROIHeads, CascadeROIHeads, Res5ROIHeads)
    return {**_rpn(model.proposal_generator), **_roi_heads(model.roi_heads)}


def _rpn(rpn: Any) -> Keys:
    section, conv = "MODEL.RPN", rpn.rpn_head.conv
    expect("proposal head", rpn.rpn_head, StandardRPNHead)
    convs = list(conv) if isinstance(conv, nn.Sequential) else [conv]
    objectness, boxes = (rpn.loss_weight.get(f"loss_rpn_{x}", 1.0) for x in ("cls", "loc"))
    return {
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": rpn.min_box_size,
        f"{section}.IN_FEATURES": rpn.in_features,
        f"{section}.CONV_DIMS": [
            -1 if x.out_channels == x.in_channels else x.out_channels for x in convs
        ],
        f"{section}.BOUNDARY_THRESH": rpn.anchor_boundary_thresh,
        f"{section}.BATCH_SIZE_PER_IMAGE": rpn.batch_size_per_image,
        f"{section}.POSITIVE_FRACTION": rpn.positive_fraction,
        f"{section}.LOSS_WEIGHT": objectness,
        f"{section}.BBOX_REG_LOSS_WEIGHT": boxes / objectness if objectness else 0.0,
        f"{section}.PRE_NMS_TOPK_TRAIN": rpn.pre_nms_topk[True],
        f"{section}.PRE_NMS_TOPK_TEST": rpn.pre_nms_topk[False],
        f"{section}.POST_NMS_TOPK_TRAIN": rpn.post_nms_topk[True],
        f"{section}.POST_NMS_TOPK_TEST": rpn.post_nms_topk[False],
        f"{section}.NMS_THRESH": rpn.nms_thresh,
        **_box_loss(section, rpn),
        **_matcher(section, rpn.anchor_matcher),
        **_anchors(rpn.anchor_generator),
    }


def _roi_heads(heads: Any) -> Keys:
    section = "MODEL.ROI_BOX_HEAD"
    for extra in ("mask", "keypoint"):
        if getattr(heads, f"{extra}_on", False):
            raise CannotSayError(f"it has a {extra} head, and the check compares boxes only")
    cascade, c4 = isinstance(heads, CascadeROIHeads), isinstance(heads, Res5ROIHeads)
    predictor = heads.box_predictor[0] if cascade else heads.box_predictor
    expect("box predictor", predictor, FastRCNNOutputLayers)
    if getattr(predictor, "use_fed_loss", False):
        raise CannotSayError("its federated loss needs the training set, which the file has not")
    keys: Keys = {
        "MODEL.ROI_HEADS.NAME": type(heads).__name__,
        "MODEL.ROI_HEADS.NUM_CLASSES": heads.num_classes,
        "MODEL.ROI_HEADS.IN_FEATURES": heads.in_features,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": heads.batch_size_per_image,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": heads.positive_fraction,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": heads.proposal_append_gt,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": predictor.test_score_thresh,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": predictor.test_nms_thresh,
        "TEST.DETECTIONS_PER_IMAGE": predictor.test_topk_per_image,
        f"{section}.CLS_AGNOSTIC_BBOX_REG": predictor.bbox_pred.out_features == 4,
        f"{section}.BBOX_REG_LOSS_WEIGHT": predictor.loss_weight.get("loss_box_reg", 1.0),
        **_pooler(section, heads.pooler if c4 else heads.box_pooler),
        **_box_loss(section, predictor),
        **_matcher("MODEL.ROI_HEADS", heads.proposal_matcher),
    }
    if getattr(predictor, "use_sigmoid_ce", False):  # release 0.6 lacks it
        keys[f"{section}.USE_SIGMOID_CE"] = True
    if cascade:
        stages = "MODEL.ROI_BOX_CASCADE_HEAD"
        weights = [list(x.box2box_transform.weights) for x in heads.box_predictor]
        keys[f"{stages}.BBOX_REG_WEIGHTS"] = weights
        keys[f"{stages}.IOUS"] = [x.thresholds[1] for x in heads.proposal_matchers]
        keys[f"{section}.BBOX_REG_WEIGHTS"] = weights[0]
    if not c4:
        keys[f"{section}.TRAIN_ON_PRED_BOXES"] = heads.train_on_pred_boxes
        keys.update(_box_head(section, heads.box_head[0] if cascade else heads.box_head))
    return keys


def _box_head(section: str, head: Any) -> Keys:
    expect("box head", head, FastRCNNConvFCHead)
    keys: Keys = {
        f"{section}.NAME": "FastRCNNConvFCHead",
        f"{section}.NUM_CONV": len(head.conv_norm_relus),
        f"{section}.NUM_FC": len(head.fcs),
    }
    if head.conv_norm_relus:
        keys[f"{section}.CONV_DIM"] = head.conv_norm_relus[0].out_channels
        keys[f"{section}.NORM"] = _norm("box head", head.conv_norm_relus[0].norm)
    if head.fcs:
        keys[f"{section}.FC_DIM"] = head.fcs[0].out_features
    return keys


def _pooler(section: str, pooler: Any) -> Keys:
    expect("pooler", pooler, ROIPooler)
    level = pooler.level_poolers[0]
    expect("pooling of a level", level, ROIAlign, RoIPool)
    keys: Keys = {f"{section}.POOLER_RESOLUTION": pooler.output_size[0]}
    if isinstance(level, RoIPool):
        return {**keys, f"{section}.POOLER_TYPE": "ROIPool"}
    kind = "ROIAlignV2" if level.aligned else "ROIAlign"
    ratio = {f"{section}.POOLER_SAMPLING_RATIO": level.sampling_ratio}
    return {**keys, f"{section}.POOLER_TYPE": kind, **ratio}
