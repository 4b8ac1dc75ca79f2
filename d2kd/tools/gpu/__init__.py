"""Run and measure everything that needs a GPU; the command is in `command.py`."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `command.main`."""
    from .command import main as command  # imports PyTorch, which must wait for the threads

    return command(argv)
