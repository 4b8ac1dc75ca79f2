"""Stage 1: a fifth of the images have true labels, the others a teacher's (labels_train.py)."""

from detectron2.config import LazyCall as L

from d2kd.data import exclude_images, mix
from d2kd.pseudo import load_pseudo_labels

from .share import dataloader, lr_multiplier, model, optimizer, train

_labeled = dataloader.train.dataset
dataloader.train.dataset = L(mix)(
    labeled=_labeled,
    rest=L(exclude_images)(
        dataset=L(load_pseudo_labels)(path="output/pseudo/demo_train/labels.json"), images=_labeled
    ),
)
train.output_dir = "output/pseudo/share_pseudo"
