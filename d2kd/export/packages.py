"""Import packages that only the export needs."""

from __future__ import annotations

from types import ModuleType

from ..packages import import_package

__all__ = ["require"]


def require(name: str) -> ModuleType:
    """Import a module of onnx or onnxruntime.

    Raises:
        ImportError: the package is not installed.
    """
    return import_package(name, "export", install="onnx onnxruntime")
