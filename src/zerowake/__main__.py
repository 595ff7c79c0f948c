"""``python -m zerowake`` is the command ``zerowake``."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    # ``-m`` looks into the current directory first, where a json.py may lie; ``zerowake`` does not.
    del sys.path[0]

from zerowake.adapters import cli as adapters
from zerowake.adapters.stores import open_store
from zerowake.runtime import cli


def main() -> int:
    """The command, with the verbs of all floors."""
    return cli.main(more=adapters.add_verbs, open_store=open_store)


if __name__ == "__main__":
    sys.exit(main())
