"""`python -m d2kd.tools.demo`."""

import sys

from .command import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"demo: {error}")
