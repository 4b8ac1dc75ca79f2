"""Feature methods side by side on the demo's RetinaNet, with equally strong gradients.

Published weights do not transfer to these small maps, so a comparison by weights would say nothing.
Here `balance` keeps the gradient of each method at the neck as large as the gradient of the task.
The methods then differ in the direction of their gradients only.
"""

from detectron2.config import LazyCall as L

from d2kd.methods import MCDropout

from ..dense.common import dataloader, distilled, lr_multiplier, optimizer, train


def uncertainty():
    """UET's uncertainty stage; docs/methods/uet.md says how sure each of its values is."""
    return L(MCDropout)(rates=[0.15, 0.20, 0.25, 0.30, 0.35], combine="sum", granularity="element")
