"""License plates. Photographs from the US and Europe have labels; the target is a dash-cam.

The longer side of an image has 480 pixels. The networks train on crops of 256 x 256.
"""

from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from ..common import dataloader as make_dataloader
from ..common import gfl

LEVELS = ["res3", "res4", "res5"]
ANCHORS = [32, 64, 128]
SOURCE = ["plates_us", "plates_eu"]

dataloader = make_dataloader(SOURCE, "plates_ro_valid", size=480, crop=256, batch=4)


def images(names):
    """A node of registered data sets, including images without boxes."""
    return L(get_detection_dataset_dicts)(names=names, filter_empty=False)


def detector(bottom_up, neck, convs):
    return gfl(bottom_up, 1, neck, convs, ANCHORS)
