"""Cascade R-CNN R50 alone: the student of the configs beside it. Detectron2 only, no d2kd."""

from detectron2 import model_zoo

from ..common.coco import dataloader, lr_multiplier, optimizer, train

model = model_zoo.get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up.freeze_at = 2
for _field in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[_field]

optimizer.lr = 0.02
train.output_dir = "output/cascade_rcnn_R_50_FPN_2x"
