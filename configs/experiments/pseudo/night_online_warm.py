"""The mean teacher of night_online.py, which begins with the labels that labels_night.py made.

Until the end of the burn-in, the student trains on these labels. Then its average labels the
images. Start from the same student:

    train.init_checkpoint=output/demo/half/model_final.pth
"""

from detectron2.config import LazyCall as L

from d2kd.data import relabel
from d2kd.pseudo import load_pseudo_labels

from .night_online import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.target = L(relabel)(
    images=L(load_pseudo_labels)(path="output/pseudo/demo_night/labels.json")
)
train.mean_teacher.burn_in = 200
train.output_dir = "output/pseudo/night_online_warm"
