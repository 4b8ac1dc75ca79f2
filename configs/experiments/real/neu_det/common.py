"""NEU-DET: photographs of hot-rolled steel, 200 x 200 pixels, six kinds of defects.

The networks see them at 160 x 160 pixels.
"""

from ..common import dataloader as make_dataloader
from ..common import gfl

LEVELS = ["res3", "res4", "res5"]
ANCHORS = [64, 128, 256]

dataloader = make_dataloader("neu_det_train", "neu_det_val", size=160)


def detector(bottom_up, neck, convs):
    return gfl(bottom_up, 6, neck, convs, ANCHORS)
