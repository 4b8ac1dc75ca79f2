"""LD with the weights that its authors released (HikariTJU/LD).

They go with 2 images per GPU: two of the three terms are sums over the images of a GPU, see `LD`.
With n images a GPU, `model.methods.ld.main=` and `.valuable=` 0.5 / n keep their size.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import LD


def ld():
    return L(LD)(weight=1.0, main=0.25, valuable=0.25, tau=10.0, classification=10.0, class_tau=2.0)
