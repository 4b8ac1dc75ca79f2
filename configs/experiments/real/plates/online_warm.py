"""The mean teacher of online.py, which begins with the labels that labels.py made.

Until the end of the burn-in, the student trains on these labels. Then its average labels the
images.
"""

from detectron2.config import LazyCall as L

from d2kd.data import relabel
from d2kd.pseudo import FixedThresholds, load_pseudo_labels

from .online import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target = L(relabel)(
    images=L(load_pseudo_labels)(path="output/real/plates/labels/labels.json")
)
train.mean_teacher.burn_in = 1000
train.mean_teacher.thresholds = L(FixedThresholds)(high=0.5, low=0.3)
train.output_dir = "output/real/plates/online_warm"
