"""Knowledge distillation for Detectron2."""

from .distiller import Distiller
from .knowledge import Knowledge
from .targets import Targets
from .teacher import Teacher

__version__ = "0.1.0"
__all__ = ["Distiller", "Knowledge", "Targets", "Teacher"]
