"""UET's uncertainty stage ("Teaching with Uncertainty", arXiv 2406.06999), for any feature method.

The target U + F ("sum") of five samples is well attested. The ramp of rates has one source only;
element-wise dropout is inferred. So is that the base method keeps its published weights: nothing
known of the paper names others. There is no official code.

U + F is about twice as large as F, so FGD's loss grows, to 4.4 times in a synthetic case. Where it
drowns the detector's own loss (`distill/fgd/ratio` in the log), keep the teacher's scale with
`model.methods.fgd.uncertainty.combine=mean`, which is ours.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import MCDropout


def uncertainty():
    return L(MCDropout)(rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element")
