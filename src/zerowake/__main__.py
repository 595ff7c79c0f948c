"""``python -m zerowake`` is the command ``zerowake``."""

import gc
import os
import sys

if sys.argv[1:2] in (["run"], ["serve"]):
    gc.disable()  # until it serves: what a start makes stays, and looking through it is 6 % of its imports
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
