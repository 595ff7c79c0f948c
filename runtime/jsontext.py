"""JSON text to Python values and back. Knows no annotations, no functions and no HTTP.

Neither numpy, torch, pydantic nor the slower parts of the standard library are imported: their
values are known by what they can do (``tolist``, ``model_dump``, ``isoformat``), so a process that
never needed them does not start to (decimal, uuid and pathlib alone are 10 ms of a cold start).
"""

import binascii
import dataclasses
import enum
import json
import math
import os
import re
import sys
from typing import Any, NoReturn

from zerowake.runtime.errors import BadRequest, BadResult

Path = tuple[str | int, ...]
MAX_NAME_NCHARS = 200

_LONGEST_INT = 10**4300  # Python neither reads nor writes longer ones (sys.set_int_max_str_digits)
# Strings are consumed whole, so that a NaN inside one is not taken for a constant.
_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')


class _Constant(ValueError):
    """NaN, Infinity or -Infinity, which Python's parser accepts and JSON does not have."""


def _refuse_constant(name: str) -> NoReturn:
    raise _Constant(name)


class _TooLarge(ValueError):
    """A number that no double holds: Python's parser makes it infinite, other readers null."""


def _finite(text: str) -> float:
    if (value := float(text)) in _INFINITE:
        raise _TooLarge(f"{text:.40}")
    return value


class _NoForm(TypeError):
    """A value that has no JSON form; the message says what it is."""


_INFINITE = (math.inf, -math.inf)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def pointer(path: Path) -> str:
    """``path`` as a JSON pointer (RFC 6901); the empty string is the whole value.

    A name that is longer than a name is cut: a reply does not repeat megabytes of its request.
    """
    names = (str(step)[:MAX_NAME_NCHARS] for step in path)
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def parse_json(body: bytes, what: str = "the body") -> Any:
    """The value that ``body`` (UTF-8) spells; of duplicate keys the last counts.

    Raises BadRequest, with the position, for anything that is not JSON text; it calls it ``what``.
    """
    text = ""
    try:
        text = body.decode()
        value = _DECODER.decode(text)
        if b"\\ud" in body or b"\\uD" in body:
            # Half a surrogate pair is legal JSON but no text: every tokenizer would choke on it.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"{what} is not UTF-8 at byte {error.start} ({error.reason}); send JSON in UTF-8"
        ) from None
    except UnicodeEncodeError:
        raise BadRequest(f"{what} has a \\ud800-\\udfff escape without its other half") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"{what} is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
            + ("; it is empty" if not body else "")
        ) from None
    except _Constant as error:
        raise BadRequest(
            f"{what} is not JSON: {error} at {_constant_place(text)}; JSON has only finite numbers"
        ) from None
    except RecursionError:
        raise BadRequest(f"{what} is nested too deep") from None
    except _TooLarge as error:
        raise BadRequest(
            f"{what} has the number {error}, which is out of range; "
            f"the largest is {sys.float_info.max:g}"
        ) from None
    except ValueError:
        limit = sys.get_int_max_str_digits()
        raise BadRequest(
            f"{what} has an integer that is too long; the limit is {limit} digits"
        ) from None
    return value


def _constant_place(text: str) -> str:
    found = next(match for match in _CONSTANT.finditer(text) if match[1])
    line_start = text.rfind("\n", 0, found.start()) + 1
    return f"line {text.count(chr(10), 0, line_start) + 1} column {found.start() - line_start + 1}"


def plain(value: Any) -> Any:
    """One step from an object to what JSON knows; its members may need further steps.

    Sets come out sorted by the JSON text of their members: equal sets give equal bytes in every
    process, which a proof relies on. Raises a TypeError for what has no JSON form.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, type):
        raise _NoForm(f"the class {value.__qualname__}")
    if isinstance(value, bytes | bytearray | memoryview):
        return binascii.b2a_base64(value, newline=False).decode()
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors on any device
        return value.tolist()
    if hasattr(value, "model_dump"):  # pydantic
        return value.model_dump(mode="json", by_alias=True)
    if hasattr(value, "isoformat"):  # datetime, date, time
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if _is(value, "uuid", "UUID") or _is(value, "decimal", "Decimal"):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=_TEXT.encode)
    raise _NoForm(f"a value of type {type(value).__module__}.{type(value).__qualname__}")


def _is(value: Any, module: str, name: str) -> bool:
    """isinstance without an import: where nobody imported the module, nothing is of its class."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


_TEXT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain)
_ESCAPED = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=plain)


def encode_text(value: Any) -> bytes:
    """``value`` as compact JSON in UTF-8; raises whatever an object's own conversion raises."""
    return _TEXT.encode(value).encode()


def encode_json(value: Any, *, what: str = "the result") -> bytes:
    """``value`` as compact JSON in UTF-8. Raises BadResult naming the place that has no JSON form.

    Where orjson was imported (``executor`` does, which takes 12 ms) plain data goes through it:
    384 floats take 0.02 instead of 0.28 ms. It may spell a number otherwise, never change it.
    """
    if (orjson := sys.modules.get("orjson")) is not None:
        try:
            data: bytes = orjson.dumps(
                value,
                option=orjson.OPT_PASSTHROUGH_DATACLASS
                | orjson.OPT_PASSTHROUGH_DATETIME
                | orjson.OPT_PASSTHROUGH_SUBCLASS,
            )
        except TypeError:  # anything but plain data, or what is no JSON
            pass
        else:
            if b"null" not in data:  # which it also writes for a NaN
                return data
    try:
        text = _TEXT.encode(value)
    except Exception as error:
        raise BadResult(_explain(value, what, error)) from error
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair; \u escapes can carry it
        return _ESCAPED.encode(value).encode()


def _explain(value: Any, what: str, error: Exception) -> str:
    try:
        path, reason = _fault(value, (), set()) or ((), f"{type(error).__name__}: {error}")
    except RecursionError:
        path, reason = (), "it is nested too deep"
    place = f"{what} at {pointer(path)}" if path else what
    return f"{place} cannot be sent as JSON: {reason}"


def _fault(value: Any, path: Path, above: set[int]) -> tuple[Path, str] | None:
    """The first place in ``value`` that cannot be encoded, and why."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, int):
        short = abs(value) < _LONGEST_INT
        return None if short else (path, "an integer of more than 4300 digits")
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        return path, f"{value} is no JSON number; return a finite number or None"
    if id(value) in above:
        return path, "it contains itself"
    inside = above | {id(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int | float | None):
                return path, f"the key {key!r} is no string"
            if found := _fault(item, (*path, str(key)), inside):
                return found
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if found := _fault(item, (*path, index), inside):
                return found
        return None
    try:
        step = plain(value)
    except _NoForm as error:
        return path, f"it is {error}; return plain data, a dataclass, a model, an array or a tensor"
    except RecursionError:
        raise
    except Exception as error:
        return path, f"{type(value).__qualname__} did not convert: {type(error).__name__}: {error}"
    return _fault(step, path, inside)
