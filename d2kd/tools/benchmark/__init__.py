"""Measure what distillation costs; the command is in `command.py`."""

from .command import main

__all__ = ["main"]
