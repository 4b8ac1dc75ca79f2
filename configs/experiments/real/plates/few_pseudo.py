"""As few.py, and half of the images are the dash-cam's other ones with a teacher's labels.

Make these labels with few_labels.py.
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller

from ..common import add_pseudo_labels, with_partial_labels
from .few import dataloader, lr_multiplier, optimizer, train
from .few import model as student

model = L(Distiller)(student=student, input_format="RGB")

_few = dataloader.train.dataset.few
_path = "output/real/plates/labels_few/labels.json"
dataloader.train.dataset.rest = add_pseudo_labels(_few, _path).rest
dataloader.train.dataset.shares = [1, 1, 2]
dataloader.train.mapper = with_partial_labels(dataloader.train.mapper)

train.output_dir = "output/real/plates/few_pseudo"
