"""FGD with the weights that its authors released for each detector (yzd-v/FGD @ c03a6cf).

For Cascade R-CNN as a student nothing is published; it takes those of Faster R-CNN.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import FGD

_ONE_STAGE = dict(levels=["p3", "p4", "p5", "p6", "p7"])
_TWO_STAGE = dict(levels=["p2", "p3", "p4", "p5"])
_RELEASED = dict(
    retinanet=dict(tau=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lambd=5e-6, **_ONE_STAGE),
    gfl=dict(tau=0.5, alpha=1e-3, beta=5e-4, gamma=5e-4, lambd=5e-6, **_ONE_STAGE),
    fcos=dict(tau=0.8, alpha=1.6e-3, beta=8e-4, gamma=8e-4, lambd=8e-6, **_ONE_STAGE),
    faster_rcnn=dict(tau=0.5, alpha=5e-5, beta=2.5e-5, gamma=5e-5, lambd=5e-7, **_TWO_STAGE),
    mask_rcnn=dict(tau=0.5, alpha=5e-5, beta=2.5e-5, gamma=5e-5, lambd=5e-7, **_TWO_STAGE),
    cascade_rcnn=dict(tau=0.5, alpha=5e-5, beta=2.5e-5, gamma=5e-5, lambd=5e-7, **_TWO_STAGE),
)


def fgd(detector):
    """
    Args:
        detector: one of the names above.
    """
    return L(FGD)(weight=1.0, **_RELEASED[detector])
