"""Dense detectors that Detectron2 lacks: one prediction at each location of each level."""

from .atss import ATSS
from .autoassign import AutoAssign
from .base import Locations, PointDetector, Predictions
from .ddod import DDOD, DDODHead
from .gfl import GFL
from .head import PointHead
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
