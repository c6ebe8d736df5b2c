"""``python -m benchmarks.codecs``."""

import sys

from benchmarks.codecs.run import main

if __name__ == "__main__":
    sys.exit(main())
