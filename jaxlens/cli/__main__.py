"""`python -m jaxlens.cli`."""

import sys

from jaxlens.cli import main

if __name__ == "__main__":
    sys.exit(main())
