"""The demo: a small student alone and with its teacher, a table and a picture."""

from .command import main

__all__ = ["main"]
