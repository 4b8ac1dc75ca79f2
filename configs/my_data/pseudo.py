"""The student learns from your labels, and from a teacher's labels of other images.

Make these with labels.py. Each kind of image is half of a batch. The student also learns from the
teacher's features, in all images. For labels alone: model.methods.pkd.weight=0

Images that have labels of yours, or that the student is tested on, do not count as other images.
"""

from detectron2.config import LazyCall as L

from d2kd.data import PartialMapper, exclude_images, mix
from d2kd.pseudo import load_pseudo_labels

from .common import OUTPUT
from .distilled import dataloader, lr_multiplier, model, optimizer, train

_labeled = dataloader.train.dataset
dataloader.train.dataset = L(mix)(
    labeled=_labeled,
    rest=L(exclude_images)(
        dataset=L(load_pseudo_labels)(path=f"{OUTPUT}/labels/labels.json"),
        images=L(mix)(labeled=_labeled, tested=dataloader.test.dataset),
        must_overlap=False,
    ),
    shares=[1, 1],
)
_mapper = dataloader.train.mapper
dataloader.train.mapper = L(PartialMapper)(
    is_train=True, augmentations=_mapper.augmentations, image_format=_mapper.image_format
)

train.output_dir = f"{OUTPUT}/pseudo"
