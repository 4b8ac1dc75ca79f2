"""Distillation methods: one file each."""

from .base import FeatureMethod, Method, Methods
from .fgd import FGD
from .mimic import Mimic
from .uncertainty import MCDropout

__all__ = ["FGD", "FeatureMethod", "MCDropout", "Method", "Methods", "Mimic"]
