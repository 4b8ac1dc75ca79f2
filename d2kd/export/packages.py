"""Find the packages that only the export needs."""

from __future__ import annotations

import inspect
from types import ModuleType

import torch

from ..packages import import_package

__all__ = ["check_exporter", "require"]


def require(name: str) -> ModuleType:
    """Import a module of onnx or onnxruntime.

    Raises:
        ImportError: the package is not installed.
    """
    return import_package(name, "export", install="onnx onnxruntime")


def check_exporter() -> None:
    """Check that this PyTorch can write our ONNX files. PyTorch 2.1 writes invalid ones.

    Raises:
        ImportError: PyTorch is too old.
    """
    if "dynamo" not in inspect.signature(torch.onnx.export).parameters:
        raise ImportError(
            f"ONNX: expected PyTorch 2.5 or later, found {torch.__version__}. Update PyTorch, or "
            f"add --formats detectron2 yacs safetensors torchscript."
        )
