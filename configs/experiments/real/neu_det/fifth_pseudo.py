"""The student on a fifth of the labels, and on a teacher's labels of the other images.

Make these labels with fifth_labels.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller

from ..common import add_pseudo_labels, with_partial_labels
from .fifth import dataloader, lr_multiplier, optimizer, train
from .fifth import model as student

# Without a teacher and methods, the Distiller masks the losses in regions to ignore.
model = L(Distiller)(student=student, input_format="RGB")

dataloader.train.dataset = add_pseudo_labels(
    dataloader.train.dataset, "output/real/neu_det/labels_fifth/labels.json"
)
dataloader.train.mapper = with_partial_labels(dataloader.train.mapper)

train.output_dir = "output/real/neu_det/fifth_pseudo"
