"""`python -m d2kd.tools.benchmark`."""

import sys

from .command import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FileNotFoundError, TypeError, ValueError) as error:
        sys.exit(str(error))
