"""Dense detectors that Detectron2 does not have: ATSS, GFL, DDOD and AutoAssign.

They make one prediction at each location of each pyramid level. They are meta-architectures like
Detectron2's own and work without distillation.
"""

from .atss import ATSS
from .autoassign import AutoAssign
from .base import PointDetector
from .ddod import DDOD, DDODHead
from .gfl import GFL
from .head import PointHead
from .structures import Locations, Predictions
from .top_block import TopBlock

__all__ = [
    "ATSS",
    "DDOD",
    "GFL",
    "AutoAssign",
    "DDODHead",
    "Locations",
    "PointDetector",
    "PointHead",
    "Predictions",
    "TopBlock",
]
