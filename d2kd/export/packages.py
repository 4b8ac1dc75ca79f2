"""Import packages that only the export needs."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(name: str) -> ModuleType:
    """Import a module of onnx or onnxruntime.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ImportError(
            f"export: expected the package {package}, found none. Run `pip install onnx "
            f"onnxruntime`. (Missing: {error.name}.)"
        ) from None
