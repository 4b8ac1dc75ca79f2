"""`python -m d2kd` is the `d2kd` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
