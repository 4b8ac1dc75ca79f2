"""The student on a fifth of the labels, and on a teacher's features in all images.

The method is given on the command line, as in distill.py.
"""

from detectron2.config import LazyCall as L

from d2kd.data import load_unlabeled, mix

from ..common import with_partial_labels
from .distill import lr_multiplier, model, optimizer, train
from .fifth import dataloader

model.teacher.weights = "output/real/neu_det/fifth_teacher/model_final.pth"
dataloader.train.dataset = L(mix)(
    labeled=dataloader.train.dataset,
    unlabeled=L(load_unlabeled)(name="neu_det_train"),
    shares=[1, 1],
)
dataloader.train.mapper = with_partial_labels(dataloader.train.mapper)

train.output_dir = "output/real/neu_det/fifth_distill"
