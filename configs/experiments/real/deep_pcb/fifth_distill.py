"""The student on a fifth of the labels, and on a teacher's features in all images.

The teacher is the one of the model zoo, which has seen all labels. The method is given on the
command line, for example: model.methods.pkd._target_=d2kd.methods.PKD
"""

import os

from ..common import add_unlabeled, distilled, with_partial_labels
from .fifth import dataloader, lr_multiplier, optimizer, train
from .fifth import model as student

_folder = os.path.dirname(__file__)
model = distilled(
    student,
    teacher=os.path.join(_folder, "teacher.py"),
    weights=os.path.join(_folder, "deep_pcb_teacher.safetensors"),
)

dataloader.train.dataset = add_unlabeled(dataloader.train.dataset, "deep_pcb_train")
dataloader.train.mapper = with_partial_labels(dataloader.train.mapper)

train.output_dir = "output/real/deep_pcb/fifth_distill"
