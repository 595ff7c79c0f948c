"""A tokenizer in parts: its JSON without the model's tables, and these as the files of the model.

Most of a tokenizer is its vocabulary, and of all ways in which the library reads one, the files that
its models save and load are the quickest. In a fork of the base zygote MiniLM's WordPiece of 30,522
tokens took 13 ms, as part of the JSON 18 and as a dict of Python's 16; where the heap is in huge pages
8, 14 and 11. A BPE of 30,000 took 29 ms on a heap in use, as part of the JSON 53. That is the building of
the library's maps: not of the files, 0.4 ms is the rest. It holds the interpreter's lock meanwhile, so a
thread cannot do it. What is quicker is to find it made: ``keep``.

Knows no snapshot: bytes in, bytes out.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerowake.snapshot.errors import DamagedSnapshot

MOST_FILES = 2

# model -> what it holds besides its tables
_SETTINGS: Mapping[str, Sequence[str]] = {
    "WordPiece": ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word"),
    "BPE": (
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    ),
}


MOST_KEPT_NBYTES = 2 << 20  # of parts: a tokenizer takes 30 times its own, MiniLM's 7 MB

_kept: dict[tuple[bytes, ...], Any] = {}  # by their parts, those used last at the end


def keep(text: bytes, files: Sequence[bytes]) -> None:
    """Have the next ``put_together`` of these parts, in this process or a fork, find it made.

    Found once only, so that nobody shares it. The one kept longest ago gives way to
    MOST_KEPT_NBYTES. Raises as ``put_together`` does.
    """
    parts = (text, *files)
    if sum(map(len, parts)) <= MOST_KEPT_NBYTES:
        _kept[parts] = put_together(text, files)
        while sum(len(part) for key in _kept for part in key) > MOST_KEPT_NBYTES:
            del _kept[next(iter(_kept))]


def take_apart(tokenizer: Any) -> tuple[bytes, dict[str, bytes]]:
    """The JSON of a ``tokenizers.Tokenizer`` and its model's files by name.

    No files, and the whole JSON, where parts would not give the same tokenizer again: other kinds
    of models, ids with holes, tokens that end in blanks or hold line ends.
    """
    import tempfile  # only freezing needs it

    whole: str = tokenizer.to_str()
    if type(tokenizer.model).__name__ not in _SETTINGS:
        return whole.encode(), {}
    plain = json.loads(whole)
    # Added tokens take their ids from the model, so it has to know them when the JSON is read.
    plain["model"]["vocab"] = {each["content"]: each["id"] for each in plain["added_tokens"]}
    if "merges" in plain["model"]:
        plain["model"]["merges"] = []
    text = json.dumps(plain, separators=(",", ":")).encode("ascii")
    with tempfile.TemporaryDirectory() as folder:
        saved = [Path(path) for path in tokenizer.model.save(folder)]
        files = {path.name: path.read_bytes() for path in saved}
    with contextlib.suppress(Exception):  # the library has no class for its errors
        if put_together(text, list(files.values())).to_str() == whole:
            return text, files
    return whole.encode(), {}


def put_together(text: bytes, files: Sequence[bytes] = ()) -> Any:
    """The tokenizer again. Raises DamagedSnapshot, or what the library raises for bad content."""
    from tokenizers import Tokenizer

    if (kept := _kept.pop((text, *files), None)) is not None:
        return kept
    tokenizer = Tokenizer.from_buffer(text)
    if not files:
        return tokenizer
    model = tokenizer.model
    kind = type(model)
    if kind.__name__ not in _SETTINGS:
        raise DamagedSnapshot(f"a tokenizer's model is {kind.__name__}, which has no files")
    found = {name: getattr(model, name) for name in _SETTINGS[kind.__name__]}
    given = {name: value for name, value in found.items() if value is not None}
    with contextlib.ExitStack() as stack:
        paths = []
        for data in files:  # the library wants paths, and what was checked is these bytes
            file = stack.enter_context(open(os.memfd_create("tokenizer"), "wb"))
            file.write(data)
            file.flush()
            paths.append(f"/proc/self/fd/{file.fileno()}")
        tokenizer.model = kind.from_file(*paths, **given)
    return tokenizer
