"""What the recipes with pseudo labels share: strong augmentation, and mixtures of data sets.

Thresholds, shares and schedules of these recipes are ours unless a file says otherwise. We have not
run them.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from d2kd.data import PartialMapper, RandomBlur, RandomErase, mix
from d2kd.pseudo import load_pseudo_labels


def images(names, filter_empty=True):
    """A node of registered data sets, by default without their images that have no boxes."""
    return L(get_detection_dataset_dicts)(names=names, filter_empty=filter_empty)


def strong(dataloader):
    """Augment the training images strongly, and let the labels say where they are incomplete."""
    dataloader.train.mapper = L(PartialMapper)(
        is_train=True,
        augmentations=[
            *dataloader.train.mapper.augmentations,
            L(T.RandomBrightness)(intensity_min=0.6, intensity_max=1.4),
            L(T.RandomContrast)(intensity_min=0.6, intensity_max=1.4),
            L(T.RandomApply)(tfm_or_aug=L(RandomBlur)(sigma_min=0.1, sigma_max=2.0), prob=0.5),
            L(T.RandomApply)(tfm_or_aug=L(RandomErase)(count=3, area_max=0.05), prob=0.5),
        ],
        image_format=dataloader.train.mapper.image_format,
    )


def add_labels(dataloader, path):
    """Add images with a teacher's labels to the training set, in equal shares.

    Images of the smaller set are repeated.
    """
    dataloader.train.dataset = L(mix)(
        source=dataloader.train.dataset, target=L(load_pseudo_labels)(path=path), shares=[1, 1]
    )
