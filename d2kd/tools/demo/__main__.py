"""`python -m d2kd.tools.demo` is `d2kd demo`."""

import sys

from d2kd.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("demo", "d2kd demo", sys.argv[1:]))
