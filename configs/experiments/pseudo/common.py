"""Students of the demo on partial labels: labels by teachers, or the labels of some images only.

The `Distiller` has no teacher and no method here. It masks the losses of the student in regions to
ignore, and it applies the weights of boxes. Add a teacher and methods to distill in the same run.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from d2kd import Distiller
from d2kd.data import PartialMapper, RandomBlur, RandomErase

from ...demo.common import dataloader, lr_multiplier, optimizer, retinanet, train

model = L(Distiller)(
    student=retinanet(blocks=[1, 1, 1], width=16, neck=48, convs=2), input_format="RGB"
)

# Teachers label the images as they are. Students train on strongly augmented images.
dataloader.train.mapper = L(PartialMapper)(
    is_train=True,
    augmentations=[
        L(T.RandomBrightness)(intensity_min=0.6, intensity_max=1.4),
        L(T.RandomContrast)(intensity_min=0.6, intensity_max=1.4),
        L(T.RandomSaturation)(intensity_min=0.5, intensity_max=1.5),
        L(T.RandomApply)(tfm_or_aug=L(RandomBlur)(sigma_min=0.1, sigma_max=1.5), prob=0.3),
        L(T.RandomApply)(tfm_or_aug=L(RandomErase)(count=2, area_max=0.05), prob=0.5),
    ],
    image_format="RGB",
)
train.eval_period = 0


def images(name):
    """A node of a registered data set, including its images without boxes."""
    return L(get_detection_dataset_dicts)(names=name, filter_empty=False)


def evaluate_on(name):
    """Validate on the data set `name` instead of `demo_val`."""
    dataloader.test.dataset.names = name
