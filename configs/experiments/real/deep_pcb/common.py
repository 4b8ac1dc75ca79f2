"""DeepPCB: binarized photographs of circuit boards, six kinds of defects.

The photographs have 640 x 640 pixels; the networks see them at 320 x 320, where a defect has
10 to 50 pixels. They train on crops of 224 x 224.
"""

from ..common import dataloader as make_dataloader
from ..common import gfl

LEVELS = ["res3", "res4"]
ANCHORS = [20, 40]

dataloader = make_dataloader("deep_pcb_train", "deep_pcb_val", size=320, crop=224, batch=4)


def detector(bottom_up, neck, convs):
    return gfl(bottom_up, 6, neck, convs, ANCHORS)
