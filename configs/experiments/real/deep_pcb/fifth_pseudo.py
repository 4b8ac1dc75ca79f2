"""The student on a fifth of the labels, and on a teacher's labels of the other images.

Make these labels with fifth_labels.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller
from d2kd.data import exclude_images, mix
from d2kd.pseudo import load_pseudo_labels

from ..common import with_partial_labels
from .fifth import dataloader, lr_multiplier, optimizer, train
from .fifth import model as student

# Without a teacher and methods, the Distiller masks the losses in regions to ignore.
model = L(Distiller)(student=student, input_format="RGB")

_labeled = dataloader.train.dataset
dataloader.train.dataset = L(mix)(
    labeled=_labeled,
    rest=L(exclude_images)(
        dataset=L(load_pseudo_labels)(path="output/real/deep_pcb/labels_fifth/labels.json"),
        images=_labeled,
    ),
    shares=[1, 1],
)
dataloader.train.mapper = with_partial_labels(dataloader.train.mapper)

train.output_dir = "output/real/deep_pcb/fifth_pseudo"
