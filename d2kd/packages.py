"""Import packages that d2kd does not require, where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["import_package"]


def import_package(name: str, caller: str, install: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: of the module.
        caller: the command or the field that needs it, for the message.
        install: what `pip install` gets.

    Raises:
        ImportError: the package, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ImportError(
            f"{caller}: expected the package {package}, found none. Run `pip install {install}`. "
            f"(Missing: {error.name}.)"
        ) from None
