"""The mean teacher of fifth_online.py, which begins with the labels that fifth_labels.py made.

Until the end of the burn-in, the student trains on these labels. Then its average labels the
images.
"""

from detectron2.config import LazyCall as L

from d2kd.data import relabel

from .fifth_online import dataloader, lr_multiplier, model, optimizer, train
from .fifth_pseudo import dataloader as labeled_once

dataloader.train.dataset.rest = L(relabel)(images=labeled_once.train.dataset.rest)
train.output_dir = "output/real/deep_pcb/fifth_online_warm"
