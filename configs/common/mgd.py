"""MGD with the weights that its authors released (yzd-v/MGD): one set for one-stage detectors, one
for two-stage detectors. None is published for FCOS or GFL.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import MGD

_RELEASED = dict(
    retinanet=dict(mask=0.65, alpha=2e-5, levels=["p3", "p4", "p5", "p6", "p7"]),
    faster_rcnn=dict(mask=0.45, alpha=5e-7, levels=["p2", "p3", "p4", "p5"]),
)


def mgd(detector):
    return L(MGD)(weight=1.0, **_RELEASED[detector])
