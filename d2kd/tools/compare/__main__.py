"""`python -m d2kd.tools.compare` is `d2kd compare`."""

import sys

from d2kd.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("compare", "d2kd compare", sys.argv[1:]))
