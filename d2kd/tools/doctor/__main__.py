"""`python -m d2kd.tools.doctor` is `d2kd doctor`."""

import sys

from d2kd.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("doctor", "d2kd doctor", sys.argv[1:]))
