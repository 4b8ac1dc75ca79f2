"""Half of the images are of the source, the other half of the dash-cam with a teacher's labels."""

from detectron2.config import LazyCall as L

from d2kd import Distiller
from d2kd.data import mix
from d2kd.pseudo import load_pseudo_labels

from ..common import with_partial_labels
from .common import SOURCE, images
from .source import dataloader, lr_multiplier, optimizer, train
from .source import model as student

model = L(Distiller)(student=student, input_format="RGB")

dataloader.train.dataset = L(mix)(
    source=images(SOURCE),
    target=L(load_pseudo_labels)(path="output/real/plates/labels/labels.json"),
    shares=[1, 1],
)
dataloader.train.mapper = with_partial_labels(dataloader.train.mapper)

train.output_dir = "output/real/plates/adapted"
