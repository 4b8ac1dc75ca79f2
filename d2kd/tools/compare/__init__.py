"""Train several configs with several seeds, and compare them in a table and a picture.

`command` is the command line. `entries` and `run` say what is trained, `statistics` and `table`
say what several seeds mean together, `history` and `curves` what several lengths mean, `evidence`
warns where the figures say little, and `results` keeps the files.
"""

from .command import main

__all__ = ["main"]
