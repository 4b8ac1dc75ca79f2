"""CWD on the five levels of the neck, with mmrazor's weight and temperature.

mmrazor has them for RetinaNet and Faster R-CNN. Its published figure for GFL is of maps of class
scores, which `CWD` does not distil; GFL's neck with the same numbers is ours.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import CWD

_LEVELS = dict(
    retinanet=["p3", "p4", "p5", "p6", "p7"],
    gfl=["p3", "p4", "p5", "p6", "p7"],
    faster_rcnn=["p2", "p3", "p4", "p5", "p6"],
)


def cwd(detector):
    return L(CWD)(weight=10.0, tau=1.0, levels=_LEVELS[detector])
