"""`python -m d2kd.tools.gpu` is what `make gpu` runs."""

import sys

from d2kd.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("gpu", "python -m d2kd.tools.gpu", sys.argv[1:]))
