"""As ../cityscapes_foggy/source.py, on cars of Sim10k (10,000 images: 19 epochs), validated on
those of Cityscapes.
"""

from d2kd.data.partial import register_only

from ..cityscapes_foggy.source import dataloader, lr_multiplier, model, optimizer, train

register_only("cityscapes_val_car", "cityscapes_val", ["car"])

model.roi_heads.num_classes = 1
dataloader.train.dataset.names = "sim10k_train"
dataloader.test.dataset.names = "cityscapes_val_car"
dataloader.evaluator.output_dir = "${train.output_dir}"  # for its own JSON of cars
train.output_dir = "output/pseudo/sim10k_cityscapes/source"
