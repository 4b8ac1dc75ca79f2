"""PGD with the weights that its authors released for each detector (ChenhongyiYang/PGD @ 81c54d5).

`beta` and `gamma` are not given: all released configs have beta = alpha / 2, gamma = 1.6 alpha.

The weights were chosen with the released code, on 4 images per GPU. `PGD` is the intended form, so
that they do not mean quite the same here:

- Released, the masks of every image lie on every image of a GPU: on N images, the background counts
  about N times as much, and the foreground also gets terms at unrelated places. For a background as
  strong as theirs set `model.methods.pgd.beta` to about 4 times its value (that is alpha * 2).
- Released, boxes choose from the whole image, and choices outside the box are lost. That is
  `model.methods.pgd.candidates=image`.
- Released, x and y are swapped for FCOS and AutoAssign, which keeps a small part of the foreground,
  and GFL's teacher decodes most boxes by wrong strides. No switch brings that back.

Which form does better on COCO has not been measured.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import PGD

_RELEASED = dict(
    fcos=dict(tau=0.8, alpha=0.04, top_k=30),
    autoassign=dict(tau=0.4, alpha=0.08, top_k=30),
    atss=dict(tau=0.8, alpha=0.08, top_k=9),
    gfl=dict(tau=0.8, alpha=0.04, top_k=30),
    ddod=dict(tau=0.8, alpha=0.08, top_k=30),
    ddod_crowdhuman=dict(tau=0.8, alpha=0.001, top_k=30),
)


def pgd(detector):
    return L(PGD)(weight=1.0, xi_cls=0.8, xi_reg=0.6, delta=8e-4, **_RELEASED[detector])
