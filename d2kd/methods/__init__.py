"""Distillation methods: one file each."""

from .base import FeatureMethod, Method, Methods
from .crosskd import CrossKD
from .cwd import CWD
from .fgd import FGD
from .ld import LD
from .mgd import MGD
from .mimic import Mimic
from .pfi import PFI
from .pgd import PGD
from .pkd import PKD
from .rank_mimic import RankMimic
from .recipe import recommended
from .uncertainty import MCDropout

__all__ = [
    "CWD",
    "FGD",
    "LD",
    "MGD",
    "PFI",
    "PGD",
    "PKD",
    "CrossKD",
    "FeatureMethod",
    "MCDropout",
    "Method",
    "Methods",
    "Mimic",
    "RankMimic",
    "recommended",
]
