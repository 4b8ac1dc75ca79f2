"""`python -m d2kd.tools.benchmark` is `d2kd benchmark`."""

import sys

from d2kd.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("benchmark", "d2kd benchmark", sys.argv[1:]))
