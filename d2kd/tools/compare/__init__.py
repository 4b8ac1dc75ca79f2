"""Train several configs with several seeds, and compare them in a table and a picture.

`command` is the command line. `entries` and `run` say what is trained, `statistics` and `table`
say what several seeds mean together, `history` and `curves` what several lengths mean, `evidence`
warns where the figures say little, and `results` keeps the files.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `command.main`."""
    from .command import main as command  # imports PyTorch, which must wait for the threads

    return command(argv)
