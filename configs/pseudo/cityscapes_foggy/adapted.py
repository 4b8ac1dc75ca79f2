"""A student moves from Cityscapes to fog. Half of the images are from Cityscapes, with its labels.

The other half are in fog, with the labels of labels.py. The student continues from source.py, for a
third of the steps and at half of the learning rate.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller

from ..common import add_labels, strong
from .source import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(student=model)  # without a teacher, it masks losses where labels are missing
add_labels(dataloader, "output/pseudo/cityscapes_foggy/labels/labels.json")
strong(dataloader)

train.init_checkpoint = f"{train.output_dir}/model_final.pth"
optimizer.lr /= 2
train.max_iter //= 3
train.output_dir = "output/pseudo/cityscapes_foggy/adapted"
