"""Feature methods side by side: RetinaNet of the demo, each method's gradient held alike.

Published weights do not transfer to these small maps, so none decides who is best: the gradient of
each method at the neck has the same norm as the task's. What differs is its direction.
"""

from ...common.uet import uncertainty
from ..dense.common import dataloader, distilled, lr_multiplier, optimizer, train
