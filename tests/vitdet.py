"""A small ViTDet of Detectron2's own code, which pads images to a square."""

from __future__ import annotations

from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from tests import toys

SQUARE = 64


def backbone(channels: int = 8) -> SimpleFeaturePyramid:
    """p2 to p6 on a ViT of two blocks."""
    vit = ViT(
        img_size=SQUARE,
        patch_size=16,
        embed_dim=8,
        depth=2,
        num_heads=2,
        window_size=2,
        window_block_indexes=(0,),
        use_rel_pos=True,
        out_feature="last_feat",
    )
    return SimpleFeaturePyramid(
        vit,
        "last_feat",
        out_channels=channels,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=SQUARE,
    )


def rcnn(**fields):
    """Faster R-CNN on this backbone."""
    model = toys.rcnn(**fields)
    model.backbone = backbone()
    return model
