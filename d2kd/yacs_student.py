"""The LazyConfig of a student whose config is a yacs file.

`to_lazy_config` carries over what Detectron2's `DefaultTrainer` and tools/train_net.py read, into
the sections of lazyconfig_train_net.py. Each node names a class or function of Detectron2, PyTorch
or fvcore with plain fields, so that mappers, checks and overrides of d2kd work as for any config.
Two nodes are ours: `build_yacs_model`, because yacs alone says how the model is built, and
`clipped_sgd`, because Detectron2's clipping changes the optimizer's class.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Iterator
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, LazyCall, get_cfg
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from omegaconf import DictConfig, OmegaConf

from .values import check_number
from .yacs_config import Setup, build_yacs_model, name_of_setup

__all__ = ["clipped_sgd", "to_lazy_config"]

logger = logging.getLogger(__name__)

# Kind of a data set -> its evaluators, as in Detectron2's tools/train_net.py.
_EVALUATORS: dict[str, tuple[type, ...]] = {
    "coco": (COCOEvaluator,),
    "lvis": (LVISEvaluator,),
    "pascal_voc": (PascalVOCDetectionEvaluator,),
    "cityscapes_instance": (CityscapesInstanceEvaluator,),
    "cityscapes_sem_seg": (CityscapesSemSegEvaluator,),
    "sem_seg": (SemSegEvaluator,),
    "coco_panoptic_seg": (SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator),
    "ade20k_panoptic_seg": (SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator),
}
_WITHOUT_FOLDER = (
    PascalVOCDetectionEvaluator,
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
)


def to_lazy_config(config: CfgNode, source: str, setup: Setup | None = None) -> DictConfig:
    """Sections `model`, `dataloader`, `optimizer`, `lr_multiplier` and `train` of a yacs config.

    `model.config` has the whole yacs config, because a model may read any of its keys, such as
    `model.config.MODEL.RETINANET.NUM_CLASSES`. The other sections have copies of what concerns
    them: the learning rate is `optimizer.lr`. Data sets need not be registered; one that is not is
    evaluated as COCO. Without a data set, there is no `dataloader.train`, and `dataloader.test` has
    its mapper only.

    A warning names what the sections have no place for.

    Args:
        config: from `read_yacs`, or of Detectron2's model zoo.
        source: its path or name, for messages.
        setup: with which it was read.

    Raises:
        ValueError: the config has a value that Detectron2 does not know, or a training sampler that
            a LazyConfig cannot say.
    """
    _check(config, source)
    if left_out := list(_left_out(config)):
        logger.warning(
            "%s: some keys have no effect in the LazyConfig: %s.", source, "; ".join(left_out)
        )
    # The round trip through YAML leaves numbers, texts, lists and dicts.
    model = dict(config=yaml.safe_load(config.dump()))
    if setup is not None:
        model["setup"] = name_of_setup(setup)
    return OmegaConf.create(
        dict(
            model=LazyCall(build_yacs_model)(**model),
            dataloader=_dataloader(config),
            optimizer=_optimizer(config.SOLVER),
            lr_multiplier=_lr_multiplier(config.SOLVER),
            train=_train(config),
        ),
        flags={"allow_objects": True},
    )


def clipped_sgd(
    params: Any,
    *,
    lr: float,
    clip_type: str,
    clip_value: float,
    norm_type: float = 2.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> torch.optim.SGD:
    """SGD that clips the gradient of each parameter by itself, as SOLVER.CLIP_GRADIENTS says.

    `train.clip_grad_norm` is another thing: it limits the norm of the whole gradient.

    Args:
        params: as in `torch.optim.SGD`, as are the fields without a line here.
        clip_type: "value" for a limit of each number, "norm" for one of each parameter's norm.
        clip_value: the limit.
        norm_type: which norm, such as 2.0.

    Raises:
        ValueError: an unknown `clip_type`.
    """
    clip = dict(ENABLED=True, CLIP_TYPE=clip_type, CLIP_VALUE=clip_value, NORM_TYPE=norm_type)
    config = CfgNode(dict(SOLVER=dict(CLIP_GRADIENTS=clip)))
    kind = maybe_add_gradient_clipping(config, torch.optim.SGD)
    return kind(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def _check(config: CfgNode, source: str) -> None:
    check_number(f"{source}: SOLVER.MAX_ITER", config.SOLVER.MAX_ITER, least=1, whole=True)
    check_number(f"{source}: SOLVER.BASE_LR", config.SOLVER.BASE_LR, above=0)
    choices = {
        "SOLVER.LR_SCHEDULER_NAME": (
            "WarmupMultiStepLR",
            "WarmupCosineLR",
            "WarmupStepWithFixedGammaLR",
        ),
        "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
        "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    }
    if config.SOLVER.CLIP_GRADIENTS.ENABLED:
        choices["SOLVER.CLIP_GRADIENTS.CLIP_TYPE"] = ("value", "norm", "full_model")
    for key, known in choices.items():
        found = functools.reduce(operator.getitem, key.split("."), config)
        if found not in known:
            fix = ""
            if key == "DATALOADER.SAMPLER_TRAIN":
                fix = (
                    " Set it to TrainingSampler, and set dataloader.train.sampler in the LazyConfig"
                    " that loads this file."
                )
            raise ValueError(f"{source}: {key}: expected {', '.join(known)}, found {found!r}.{fix}")


def _left_out(config: CfgNode) -> Iterator[str]:
    """What the LazyConfig does not say, and what that means."""
    solver, test = config.SOLVER, config.TEST
    if solver.get("REFERENCE_WORLD_SIZE"):
        yield (
            f"SOLVER.REFERENCE_WORLD_SIZE={solver.REFERENCE_WORLD_SIZE} (batch size and learning "
            f"rate do not follow the number of GPUs)"
        )
    if test.PRECISE_BN.ENABLED:
        yield "TEST.PRECISE_BN (statistics of batch norms are the running ones)"
    if test.AUG.ENABLED:
        yield "TEST.AUG (each image is evaluated once, without augmentation)"
    if test.EXPECTED_RESULTS:
        yield "TEST.EXPECTED_RESULTS (results are not compared with them)"
    if len(config.DATASETS.TEST) > 1:
        first, *others = config.DATASETS.TEST
        yield f"DATASETS.TEST {', '.join(others)} (only the first one, {first}, is evaluated)"
    late = [x for x in solver.STEPS if x >= solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        yield f"SOLVER.STEPS {', '.join(map(str, late))} (SOLVER.MAX_ITER is {solver.MAX_ITER})"
    if own := sorted(_keys(config) - _keys(get_cfg())):
        yield f"{', '.join(own)} (only the model sees these keys of a project)"


def _keys(node: CfgNode, prefix: str = "") -> set[str]:
    """All keys of a config outside MODEL."""
    found = set()
    for name, value in node.items():
        if isinstance(value, CfgNode) and f"{prefix}{name}" != "MODEL":
            found |= _keys(value, f"{prefix}{name}.")
        elif name != "MODEL":
            found.add(f"{prefix}{name}")
    return found


def _dataloader(config: CfgNode) -> dict[str, Any]:
    names = config.DATASETS.TEST
    test = dict(mapper=_mapper(config, is_train=False))
    if not names:
        return dict(**_train_loader(config), test=test)
    dataset = dict(names=names[0], filter_empty=False)
    if config.MODEL.LOAD_PROPOSALS:
        dataset["proposal_files"] = list(config.DATASETS.PROPOSAL_FILES_TEST[:1])
    loader = LazyCall(build_detection_test_loader)(
        dataset=LazyCall(get_detection_dataset_dicts)(**dataset),
        **test,
        num_workers=config.DATALOADER.NUM_WORKERS,
    )
    return dict(**_train_loader(config), test=loader, evaluator=_evaluator(config, names[0]))


def _train_loader(config: CfgNode) -> dict[str, Any]:
    names, options = list(config.DATASETS.TRAIN), config.DATALOADER
    if not names:
        return {}
    dataset = dict(
        names=names[0] if len(names) == 1 else names,
        filter_empty=options.FILTER_EMPTY_ANNOTATIONS,
    )
    if config.MODEL.KEYPOINT_ON:
        dataset["min_keypoints"] = config.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if config.MODEL.LOAD_PROPOSALS:
        dataset["proposal_files"] = list(config.DATASETS.PROPOSAL_FILES_TRAIN)
    loader = dict(
        dataset=LazyCall(get_detection_dataset_dicts)(**dataset),
        mapper=_mapper(config, is_train=True),
        total_batch_size=config.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=options.ASPECT_RATIO_GROUPING,
        num_workers=options.NUM_WORKERS,
    )
    if options.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = dict(dataset_dicts="${...dataset}", repeat_thresh=options.REPEAT_THRESHOLD)
        if not options.get("REPEAT_SQRT", True):
            factors["sqrt"] = False
        function = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        seed = dict(seed=config.SEED) if config.SEED >= 0 else {}
        loader["sampler"] = LazyCall(RepeatFactorTrainingSampler)(
            repeat_factors=LazyCall(function)(**factors), **seed
        )
    return dict(train=LazyCall(build_detection_train_loader)(**loader))


def _mapper(config: CfgNode, *, is_train: bool) -> DictConfig:
    """What `DatasetMapper(config, is_train)` does, with one field for each thing."""
    fields: dict[str, Any] = dict(
        is_train=is_train,
        augmentations=_augmentations(config) if is_train else [_resize(config, "TEST")],
        image_format=config.INPUT.FORMAT,
    )
    if config.MODEL.LOAD_PROPOSALS:
        kind = "TRAIN" if is_train else "TEST"
        fields["precomputed_proposal_topk"] = config.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{kind}"]
    if is_train and config.MODEL.MASK_ON:
        fields["use_instance_mask"] = True
        fields["instance_mask_format"] = config.INPUT.MASK_FORMAT
        fields["recompute_boxes"] = config.INPUT.CROP.ENABLED
    if is_train and config.MODEL.KEYPOINT_ON:
        fields["use_keypoint"] = True
        fields["keypoint_hflip_indices"] = LazyCall(create_keypoint_hflip_indices)(
            dataset_names="${...dataset.names}"
        )
    return LazyCall(DatasetMapper)(**fields)


def _augmentations(config: CfgNode) -> list[DictConfig]:
    crop, flip = config.INPUT.CROP, config.INPUT.RANDOM_FLIP
    augmentations = [_resize(config, "TRAIN")]
    if crop.ENABLED:
        node = LazyCall(T.RandomCrop)(crop_type=crop.TYPE, crop_size=list(crop.SIZE))
        augmentations.insert(0, node)
    if flip != "none":
        node = LazyCall(T.RandomFlip)(horizontal=flip == "horizontal", vertical=flip == "vertical")
        augmentations.append(node)
    return augmentations


def _resize(config: CfgNode, kind: str) -> DictConfig:
    options = config.INPUT
    size = options[f"MIN_SIZE_{kind}"]
    fields = dict(
        short_edge_length=size if isinstance(size, int) else list(size),
        max_size=options[f"MAX_SIZE_{kind}"],
    )
    if kind == "TRAIN":
        fields["sample_style"] = options.MIN_SIZE_TRAIN_SAMPLING
    return LazyCall(T.ResizeShortestEdge)(**fields)


def _evaluator(config: CfgNode, name: str) -> DictConfig | list[DictConfig]:
    known = MetadataCatalog.get(name) if name in MetadataCatalog.list() else {}
    kinds = _EVALUATORS.get(known.get("evaluator_type", None) or "coco", (COCOEvaluator,))
    place = ".." if len(kinds) == 1 else "..."  # of several evaluators, one node is in a list
    nodes = []
    for kind in kinds:
        fields: dict[str, Any] = dict(dataset_name=f"${{{place}test.dataset.names}}")
        if kind not in _WITHOUT_FOLDER:
            # A COCOEvaluator writes the annotations of a set that has no COCO file there.
            fields["output_dir"] = f"${{{place}.train.output_dir}}/inference"
        if kind is COCOEvaluator and config.TEST.KEYPOINT_OKS_SIGMAS:
            fields["kpt_oks_sigmas"] = list(config.TEST.KEYPOINT_OKS_SIGMAS)
        nodes.append(LazyCall(kind)(**fields))
    return nodes[0] if len(nodes) == 1 else nodes


def _optimizer(solver: CfgNode) -> DictConfig:
    groups: dict[str, Any] = dict(weight_decay_norm=solver.WEIGHT_DECAY_NORM)
    if solver.BIAS_LR_FACTOR != 1.0:
        groups.update(base_lr="${..lr}", bias_lr_factor=solver.BIAS_LR_FACTOR)
    if solver.WEIGHT_DECAY_BIAS is not None:
        groups["weight_decay_bias"] = solver.WEIGHT_DECAY_BIAS
    options = dict(
        params=LazyCall(get_default_optimizer_params)(**groups),
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
    )
    clip = solver.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE == "full_model":  # the latter is train.clip_grad_norm
        return LazyCall(torch.optim.SGD)(**options)
    return LazyCall(clipped_sgd)(
        **options,
        clip_type=clip.CLIP_TYPE,
        clip_value=clip.CLIP_VALUE,
        norm_type=clip.NORM_TYPE,
    )


def _lr_multiplier(solver: CfgNode) -> DictConfig:
    steps = [x for x in solver.STEPS if x < solver.MAX_ITER]
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        schedule = LazyCall(MultiStepParamScheduler)(
            values=[solver.GAMMA**k for k in range(len(steps) + 1)],
            milestones=steps,
            num_updates=solver.MAX_ITER,
        )
    elif solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        schedule = LazyCall(CosineParamScheduler)(
            start_value=1.0, end_value=solver.BASE_LR_END / solver.BASE_LR
        )
    else:
        schedule = LazyCall(StepWithFixedGammaParamScheduler)(
            base_value=1.0,
            gamma=solver.GAMMA,
            num_decays=solver.NUM_DECAYS,
            num_updates=solver.MAX_ITER,
        )
    warmup: dict[str, Any] = dict(
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_length=min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        warmup_method=solver.WARMUP_METHOD,
    )
    if solver.get("RESCALE_INTERVAL"):
        warmup["rescale_interval"] = True
    return LazyCall(WarmupParamScheduler)(scheduler=schedule, **warmup)


def _train(config: CfgNode) -> dict[str, Any]:
    """The fields of `train` that the config says; the others have their defaults."""
    solver = config.SOLVER
    train = dict(
        output_dir=config.OUTPUT_DIR,
        init_checkpoint=config.MODEL.WEIGHTS,
        device=config.MODEL.DEVICE,
        seed=config.SEED,
        max_iter=solver.MAX_ITER,
        amp=dict(enabled=solver.AMP.ENABLED),
        checkpointer=dict(period=solver.CHECKPOINT_PERIOD, max_to_keep=None),
        eval_period=config.TEST.EVAL_PERIOD,
        cudnn_benchmark=config.CUDNN_BENCHMARK,
    )
    if config.get("FLOAT32_PRECISION"):
        train["float32_precision"] = config.FLOAT32_PRECISION
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        train["clip_grad_norm"] = clip.CLIP_VALUE
    return train
