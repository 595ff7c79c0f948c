"""all-MiniLM-L6-v2 with ``torch.compile`` in a process that answers one text and ends.

`compiled_minilm.py TEXT` prints the vector as JSON.
"""

import json
import sys

import torch
from minilm import MiniLM

if __name__ == "__main__":
    minilm = MiniLM()
    minilm.model = torch.compile(minilm.model, dynamic=True)
    print(json.dumps(minilm.embed([sys.argv[1]])[0]))
