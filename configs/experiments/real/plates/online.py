"""A mean teacher labels the images of the dash-cam while the student trains.

Half of the images are of the source, the other half of the dash-cam without labels. To start from
labels made once, as in adapted.py, set

    dataloader.train.dataset.target = L(relabel)(images=L(load_pseudo_labels)(path=...))
"""

from detectron2.config import LazyCall as L

from d2kd import Distiller
from d2kd.data import load_unlabeled, mix
from d2kd.pseudo import DistributionThresholds, Fusion, MeanTeacher

from ..common import with_two_views
from .common import SOURCE, images
from .source import dataloader, lr_multiplier, optimizer, train
from .source import model as student

model = L(Distiller)(student=student, input_format="RGB")

dataloader.train.dataset = L(mix)(
    source=images(SOURCE), target=L(load_unlabeled)(name="plates_ro_train"), shares=[1, 1]
)
dataloader.train.mapper = with_two_views(dataloader.train.mapper)

train.ema = dict(decay=0.999)
# With fixed thresholds of 0.5 and 0.3 after a burn-in of 600 steps, the average finds nothing, and
# the student learns that the dash-cam's images are background.
train.mean_teacher = L(MeanTeacher)(
    burn_in=1500, thresholds=L(DistributionThresholds)(share=0.6), fusion=L(Fusion)()
)
train.output_dir = "output/real/plates/online"
