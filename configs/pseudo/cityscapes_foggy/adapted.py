"""From Cityscapes, with its labels, to fog, with those of labels.py: half of the images each.

It goes on from source.py, for a third of its steps at half of its learning rate.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller

from ..common import add_labels, strong
from .source import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(student=model)  # without a teacher: it heeds what labels leave open
add_labels(dataloader, "output/pseudo/cityscapes_foggy/labels/labels.json")
strong(dataloader)

train.init_checkpoint = f"{train.output_dir}/model_final.pth"
optimizer.lr /= 2
train.max_iter //= 3
train.output_dir = "output/pseudo/cityscapes_foggy/adapted"
