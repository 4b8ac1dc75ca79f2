"""Train several configs with several seeds, and compare them in a table and a picture.

`command` is the command line. `entries` and `run` say what is trained, `statistics` and `table`
say what several seeds mean together, and `results` keeps the files.
"""

from .command import main

__all__ = ["main"]
