"""PKD with the weights of its release (mmrazor): four levels of the neck, also where it has five.

RetinaNet's weight was published for ResNeXt-101 teachers. GFL's is CrossKD's, which has PKD beside
its own loss; what GFL had with PKD alone is not known.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import PKD

_PUBLISHED = dict(
    retinanet=dict(weight=10.0, levels=["p3", "p4", "p5", "p6"]),
    gfl=dict(weight=6.0, levels=["p3", "p4", "p5", "p6"]),
    faster_rcnn=dict(weight=6.0, levels=["p2", "p3", "p4", "p5"]),
)


def pkd(detector):
    return L(PKD)(**_PUBLISHED[detector])
