"""The manifest: what a snapshot is made of, and the strict reading of its JSON.

Knows no file system and no torch. Everything that the snapshot holds is named here by digest, so
that the digest of this one file is the identity of the whole. Reading refuses what it does not
know: a stranger may have written the bytes.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from zerowake.snapshot.errors import DamagedSnapshot, UnsupportedVersion

FORMAT_NAME = "zerowake"
FORMAT_VERSION = 1
MAX_JSON_NBYTES = 64 << 20
MAX_DEPTH = 64
MAX_RANK = 64  # of a tensor or array, as numpy has it
MAX_PATH, MAX_PARTS = 400, 16  # letters and parts of a file's path
MAX_INT = 1 << 53  # what every JSON reader agrees on
BLOCK_NBYTES = 4 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class File(NamedTuple):
    """A file that is neither the manifest nor weights."""

    nbytes: int
    sha256: str


class Segment(NamedTuple):
    """A weights file. ``data_offset``: where tensor data starts in it; ``blocks``: SHA-256 of each
    ``block_nbytes`` of the whole file, the last one shorter."""

    file: str
    nbytes: int
    data_offset: int
    block_nbytes: int
    blocks: tuple[str, ...]


class Tensor(NamedTuple):
    """One stored tensor. ``offset`` counts bytes from the segment's ``data_offset``; ``dtype`` is
    safetensors' name; ``mutated``: the probe wrote into it, so it is state of each instance."""

    name: str
    segment: int
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    mutated: bool


class Code(NamedTuple):
    """The author's source files, relative to ``code/``; ``entry`` is the one with the target."""

    digest: str
    entry: str
    files: Mapping[str, str]


class Manifest(NamedTuple):
    """``function`` and ``environment`` are plain JSON of whoever froze; nothing here reads them."""

    name: str
    function: Mapping[str, Any]
    code: Code
    files: Mapping[str, File]
    segments: tuple[Segment, ...]
    tensors: tuple[Tensor, ...]
    environment: Mapping[str, Any]
    created_by: str


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON: keys sorted, no spaces, ASCII. Its SHA-256 is the snapshot's digest."""
    plain = {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "name": manifest.name,
        "function": manifest.function,
        "code": {
            "digest": manifest.code.digest,
            "entry": manifest.code.entry,
            "files": manifest.code.files,
        },
        "files": {
            path: {"nbytes": file.nbytes, "sha256": file.sha256}
            for path, file in manifest.files.items()
        },
        "segments": [
            {
                "file": segment.file,
                "nbytes": segment.nbytes,
                "data_offset": segment.data_offset,
                "block_nbytes": segment.block_nbytes,
                "blocks": segment.blocks,
            }
            for segment in manifest.segments
        ],
        "tensors": [
            {
                "name": tensor.name,
                "segment": tensor.segment,
                "offset": tensor.offset,
                "nbytes": tensor.nbytes,
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "mutated": tensor.mutated,
            }
            for tensor in manifest.tensors
        ],
        "environment": manifest.environment,
        "created_by": manifest.created_by,
    }
    return canonical(plain)


def canonical(plain: object) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse(data: bytes, *, checked: bool = False) -> Manifest:
    """The manifest in ``data``; what it says about files is checked in ``store``.

    checked: these bytes have been parsed before, so they are taken at their word.

    Raises UnsupportedVersion for a format this release does not read, DamagedSnapshot otherwise.
    """
    if checked:
        return _manifest(json.loads(data))
    plain = parse_json(data, "manifest.json")
    if not isinstance(plain, dict):
        raise DamagedSnapshot(f"manifest.json holds {_kind(plain)}, wanted an object")
    _check_version(plain.get("format"))
    if canonical(plain) != data:
        raise DamagedSnapshot("manifest.json is not canonical JSON: sorted keys, no spaces, ASCII")
    top = _fields(plain, "manifest.json", _TOP)
    try:
        return _manifest(top)
    except DamagedSnapshot as error:
        raise DamagedSnapshot(f"manifest.json: {error.args[0]}") from None


def _manifest(top: dict[str, Any]) -> Manifest:
    name = top["name"]
    if not isinstance(name, str) or not is_name(name):
        raise DamagedSnapshot(f"name is {name!r:.80}; wanted letters, digits, '-', '_', '.'")
    return Manifest(
        name=name,
        function=_dict(top["function"], "function"),
        code=_code(top["code"]),
        files={
            clean_path(path, "files"): _file(value, f"files[{path!r}]")
            for path, value in _dict(top["files"], "files").items()
        },
        segments=tuple(map(_segment, _list(top["segments"], "segments"))),
        tensors=tuple(map(_tensor, _list(top["tensors"], "tensors"))),
        environment=_dict(top["environment"], "environment"),
        created_by=_string(top["created_by"], "created_by"),
    )


def parse_json(data: bytes, what: str) -> Any:
    """JSON from a stranger, in UTF-8: bounded in size and depth, no duplicate keys, no NaN or
    Infinity. Raises DamagedSnapshot, which calls the file ``what``."""
    if len(data) > MAX_JSON_NBYTES:
        raise DamagedSnapshot(f"{what} has {len(data)} bytes; the limit is {MAX_JSON_NBYTES}")
    try:
        plain = json.loads(
            data.decode("utf-8"),  # of bytes json would take UTF-16 and UTF-32 as well
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise DamagedSnapshot(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise DamagedSnapshot(f"{what} is not acceptable JSON: {error}") from None
    level, depth = [plain], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise DamagedSnapshot(f"{what} is nested deeper than {MAX_DEPTH} levels")
        deeper: list[Any] = []
        for value in level:
            if type(value) is dict:
                deeper += [v for v in value.values() if type(v) is dict or type(v) is list]
            elif type(value) is list:
                deeper += [v for v in value if type(v) is dict or type(v) is list]
        level = deeper
    return plain


def clean_path(path: str, where: str) -> str:
    """``path`` when it is a relative path of plain names that stays below the snapshot."""
    parts = path.split("/")
    if len(path) > MAX_PATH or len(parts) > MAX_PARTS or not all(map(_PART.fullmatch, parts)):
        raise DamagedSnapshot(
            f"{where} names the path {path!r:.120}; wanted a relative path of plain names "
            "(letters, digits, '_', '-', '.'), without '..'"
        )
    return path


def integer(value: object, where: str, most: int = MAX_INT) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise DamagedSnapshot(f"{where} is {value!r:.60}; wanted an integer from 0 to {most}")
    return value


_TOP = frozenset(
    [
        "format",
        "name",
        "function",
        "code",
        "files",
        "segments",
        "tensors",
        "environment",
        "created_by",
    ]
)


def _check_version(format_: object) -> None:
    if not isinstance(format_, dict) or format_.get("name") != FORMAT_NAME:
        raise DamagedSnapshot(f"manifest.json has format {format_!r:.80}; not a Zerowake snapshot")
    version = format_.get("version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise UnsupportedVersion(
            f"the snapshot has format version {version!r:.40}; this release reads "
            f"{FORMAT_VERSION}. Update zerowake, or freeze the function again."
        )
    _fields(format_, "format", frozenset({"name", "version"}))


def _code(value: object) -> Code:
    code = _fields(value, "code", frozenset({"digest", "entry", "files"}))
    files = {
        clean_path(path, "code.files"): _sha256(sha, f"code.files[{path!r}]")
        for path, sha in _dict(code["files"], "code.files").items()
    }
    entry = _string(code["entry"], "code.entry")
    if entry not in files:
        raise DamagedSnapshot(f"code.entry is {entry!r:.80}, which is not among code.files")
    if not isinstance(code["digest"], str) or not _DIGEST.fullmatch(code["digest"]):
        raise DamagedSnapshot(f"code.digest is {code['digest']!r:.80}; wanted sha256:<64 hex>")
    return Code(code["digest"], entry, files)


def _file(value: object, where: str) -> File:
    file = _fields(value, where, frozenset({"nbytes", "sha256"}))
    return File(
        integer(file["nbytes"], f"{where}.nbytes"), _sha256(file["sha256"], f"{where}.sha256")
    )


def _segment(value: object) -> Segment:
    fields = frozenset({"file", "nbytes", "data_offset", "block_nbytes", "blocks"})
    plain = _fields(value, "a segment", fields)
    file = clean_path(_string(plain["file"], "a segment's file"), "a segment")
    where = f"segment {file}"
    nbytes = integer(plain["nbytes"], f"{where}: nbytes")
    block_nbytes = integer(plain["block_nbytes"], f"{where}: block_nbytes", 1 << 30)
    blocks = tuple(_sha256(b, f"{where}: a block") for b in _list(plain["blocks"], where))
    if block_nbytes != BLOCK_NBYTES or len(blocks) != -(-nbytes // BLOCK_NBYTES):
        raise DamagedSnapshot(
            f"{where} of {nbytes} bytes lists {len(blocks)} blocks of {block_nbytes}; "
            f"wanted blocks of {BLOCK_NBYTES} that cover it"
        )
    data_offset = integer(plain["data_offset"], f"{where}: data_offset", nbytes)
    return Segment(file, nbytes, data_offset, block_nbytes, blocks)


def _tensor(value: object) -> Tensor:
    fields = frozenset({"name", "segment", "offset", "nbytes", "dtype", "shape", "mutated"})
    plain = _fields(value, "a tensor", fields)
    name = _string(plain["name"], "a tensor's name")
    where = f"tensor {name!r:.80}"
    if type(plain["mutated"]) is not bool:
        raise DamagedSnapshot(f"{where}: mutated is {plain['mutated']!r:.40}; wanted true or false")
    return Tensor(
        name=name,
        segment=integer(plain["segment"], f"{where}: segment"),
        offset=integer(plain["offset"], f"{where}: offset"),
        nbytes=integer(plain["nbytes"], f"{where}: nbytes"),
        dtype=_string(plain["dtype"], f"{where}: dtype"),
        shape=_shape(plain["shape"], f"{where}: shape"),
        mutated=plain["mutated"],
    )


def _shape(value: object, where: str) -> tuple[int, ...]:
    shape = _list(value, where)
    if len(shape) > MAX_RANK:
        raise DamagedSnapshot(f"{where} has {len(shape)} dimensions; wanted at most {MAX_RANK}")
    return tuple(integer(n, where) for n in shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} occurs twice in one object")
    return plain


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text:.40} is no finite number")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _fields(value: object, where: str, names: frozenset[str]) -> dict[str, Any]:
    plain = _dict(value, where)
    if plain.keys() != names:
        missing, unknown = sorted(names - plain.keys()), sorted(plain.keys() - names)
        raise DamagedSnapshot(f"{where}: fields missing: {missing}, fields unknown: {unknown}")
    return plain


def _dict(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedSnapshot(f"{where} is {_kind(value)}, wanted an object")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DamagedSnapshot(f"{where} is {_kind(value)}, wanted a list")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise DamagedSnapshot(f"{where} is {value!r:.60}; wanted a string of at most 1000 letters")
    return value


def _sha256(value: object, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise DamagedSnapshot(f"{where} is {value!r:.80}; wanted 64 hexadecimal digits")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
