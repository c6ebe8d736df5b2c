"""Runs ``python -m jaxsparse``, the same as ``jaxsparse``."""

import sys

from jaxsparse.cli import main

if __name__ == "__main__":
    sys.exit(main())
