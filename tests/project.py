"""A small project beside Detectron2, like PointRend: its config has a key of its own."""

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet


def add_project_config(cfg: CfgNode) -> None:
    cfg.MODEL.PROJECT = CfgNode(dict(GAIN=1.0))


@META_ARCH_REGISTRY.register()
class ProjectNet(RetinaNet):
    """A RetinaNet with one more field."""

    @configurable
    def __init__(self, *, gain: float, **fields):
        super().__init__(**fields)
        self.gain = gain

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return dict(gain=cfg.MODEL.PROJECT.GAIN, **RetinaNet.from_config(cfg))


def write_config(path, meta_architecture: str = "ProjectNet") -> str:
    """Write a config of the project: a narrow RetinaNet on ResNet-18."""
    path.write_text(
        f"""MODEL:
  META_ARCHITECTURE: {meta_architecture}
  BACKBONE: {{NAME: build_retinanet_resnet_fpn_backbone}}
  RESNETS: {{OUT_FEATURES: [res3, res4, res5], DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  FPN: {{IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 16}}
  RETINANET: {{IN_FEATURES: [p3, p4, p5, p6, p7], NUM_CLASSES: 3}}
  PROJECT: {{GAIN: 2.5}}
INPUT: {{MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}}
VERSION: 2
"""
    )
    return str(path)
