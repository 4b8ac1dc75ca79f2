"""NEU-DET: photographs of hot-rolled steel, 200 x 200 pixels, six kinds of defects."""

from .. import common as real

LEVELS = ["res3", "res4", "res5"]
ANCHORS = [64, 128, 256]

dataloader = real.dataloader("neu_det_train", "neu_det_val", size=192)


def detector(bottom_up, neck, convs):
    return real.gfl(bottom_up, 6, neck, convs, ANCHORS)
