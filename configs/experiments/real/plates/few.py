"""Half of the images are of the source, the other half are the labeled tenth of the dash-cam's."""

from detectron2.config import LazyCall as L

from d2kd.data import mix, random_subset

from .common import SOURCE, images
from .source import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset = L(mix)(
    source=images(SOURCE),
    few=L(random_subset)(dataset=images("plates_ro_train"), share=0.1, seed=0),
    shares=[1, 1],
)

train.output_dir = "output/real/plates/few"
