"""A student moves from VOC, with its labels, to Clipart1k, with the labels of labels.py.

Everything else is as in ../cityscapes_foggy/adapted.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller

from ..common import add_labels, strong
from .source import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(student=model)
add_labels(dataloader, "output/pseudo/voc_clipart/labels/labels.json")
strong(dataloader)

train.init_checkpoint = f"{train.output_dir}/model_final.pth"
optimizer.lr /= 2
train.max_iter //= 3
train.output_dir = "output/pseudo/voc_clipart/adapted"
