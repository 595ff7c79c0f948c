"""``python -m zerowake`` is the command ``zerowake``."""

import sys

from zerowake.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
