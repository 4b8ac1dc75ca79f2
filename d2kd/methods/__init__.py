"""Distillation methods: one file each."""

from .base import FeatureMethod, Method, Methods
from .fgd import FGD
from .mimic import Mimic
from .pfi import PFI
from .pgd import PGD
from .rank_mimic import RankMimic
from .uncertainty import MCDropout

__all__ = [
    "FGD",
    "PFI",
    "PGD",
    "FeatureMethod",
    "MCDropout",
    "Method",
    "Methods",
    "Mimic",
    "RankMimic",
]
