"""Knowledge distillation for Detectron2.

Its names are loaded when they are first used, so that `import d2kd` does not import PyTorch. The
`d2kd` command needs this: it sets the number of threads before PyTorch reads it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distiller import Distiller
    from .feature_teacher import FeatureTeacher
    from .knowledge import Knowledge
    from .loading import load_student_config
    from .targets import Targets
    from .teacher import Teacher

__version__ = "0.1.0"
__all__ = ["Distiller", "FeatureTeacher", "Knowledge", "Targets", "Teacher", "load_student_config"]

# Of the others, the module is the name in lower case.
_MODULES = {"FeatureTeacher": "feature_teacher", "load_student_config": "loading"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = _MODULES.get(name, name.lower())
        return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
