"""``python -m zerowake`` is the command ``zerowake``."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    # ``-m`` looks into the current directory first, where a json.py may lie; ``zerowake`` does not.
    del sys.path[0]

from zerowake.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
