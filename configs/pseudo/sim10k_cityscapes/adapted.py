"""A student moves from Sim10k, with its labels, to Cityscapes, with the labels of labels.py.

Everything else is as in ../cityscapes_foggy/adapted.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller

from ..common import add_labels, strong
from .source import dataloader, lr_multiplier, model, optimizer, train

model = L(Distiller)(student=model)
add_labels(dataloader, "output/pseudo/sim10k_cityscapes/labels/labels.json")
strong(dataloader)

train.init_checkpoint = f"{train.output_dir}/model_final.pth"
optimizer.lr /= 2
train.max_iter //= 3
train.output_dir = "output/pseudo/sim10k_cityscapes/adapted"
