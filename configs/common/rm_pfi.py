"""Rank Mimicking and Prediction-guided Feature Imitation (RM + PFI, arXiv 2112.04840).

There is no official code. The weights 4 and 1.5 agree in two independent implementations, and are
probably the paper's. They go with the forms named here, those of mmrazor's pull request 107 but for
two things: candidates keep their identity (it sorts the scores of each network by themselves), and
localisation is ranked too (the paper does, by a formula that we do not know; ours is the IoU).
Its PFI divides by the batch size twice; ours once.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import PFI, Methods, RankMimic


def rm_pfi():
    return L(Methods)(
        rank_mimic=L(RankMimic)(weight=4.0, scores="sigmoid", tau=1.0),
        pfi=L(PFI)(weight=1.5, scores="logit", reduction="norm"),
    )
