"""The Open Inference Protocol (KServe's v2): tensors to a function's items, results to tensors.

https://github.com/kserve/open-inference-protocol, with Triton's extension for binary tensor data. The
leading dimension of every input counts items: row i of the inputs, by name, is item i. Pure: values
in, values out; knows no HTTP.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zerowake.runtime.errors import BadRequest
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.jsontext import parse_json

FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
BYTES = "BYTES"
OUTPUT = "output"  # what a result that has no fields is called


@dataclass(frozen=True, slots=True)
class InferRequest:
    """items: one value for each row; bytes for a function that takes bytes.

    outputs: the tensors that are wanted, each with whether in binary; None: all. binary: how, then.
    """

    id: str | None
    items: list[Any]
    outputs: dict[str, bool] | None
    binary: bool


@dataclass(frozen=True, slots=True)
class _Tensor:
    """flat: its elements in row-major order; of BYTES they are str or bytes."""

    name: str
    datatype: str
    shape: list[int]
    flat: list[Any]


def read(info: FunctionInfo, body: bytes, header_nbytes: int | None) -> InferRequest:
    """header_nbytes: where JSON ends and binary data begins; None: it is all JSON. Raises BadRequest."""
    if header_nbytes is None:
        text, data = body, b""
    elif 0 <= header_nbytes <= len(body):
        text, data = body[:header_nbytes], body[header_nbytes:]
    else:
        raise BadRequest(
            f"Inference-Header-Content-Length is not within the {len(body)} bytes sent"
        )
    value = parse_json(text)
    if not isinstance(value, dict):
        raise BadRequest('a request is {"inputs": [...]}')
    id_ = value.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise BadRequest("id is no string")
    columns: dict[str, _Tensor] = {}
    at = 0
    for given in _objects(value, "inputs"):
        tensor, nbytes = _input(given, data[at:])
        at += nbytes
        if tensor.name in columns:
            raise BadRequest(f"input {tensor.name!r:.80} is given twice")
        columns[tensor.name] = tensor
    if at != len(data):
        raise BadRequest(f"{len(data)} bytes of binary data came, and the inputs name {at}")
    if not columns:
        raise BadRequest("there are no inputs")
    parameters = _parameters(value)
    binary = parameters.get("binary_data_output") is True
    outputs = None
    if value.get("outputs"):
        outputs = {}
        for wanted in _objects(value, "outputs"):
            told = _parameters(wanted)
            if told.get("classification"):
                raise BadRequest("classification of outputs is not known here")
            outputs[_name(wanted)] = told.get("binary_data", binary) is True
    return InferRequest(id_, _items(info, columns), outputs, binary)


def write(request: InferRequest, model: str, results: list[Any]) -> tuple[bytes, int | None]:
    """The answer's body, and where its JSON ends if binary data follows. Raises BadRequest.

    results: one for each item, a value of JSON, or bytes.
    """
    tensors = {name: _tensor(name, values) for name, values in _columns(results).items()}
    wanted = request.outputs or dict.fromkeys(tensors, request.binary)
    if unknown := set(wanted) - set(tensors):
        raise BadRequest(f"there is no output {min(unknown)!r:.80}; there are {', '.join(tensors)}")
    outputs, blobs = [], []
    for name, is_binary in wanted.items():
        tensor = tensors[name]
        told: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if is_binary:
            blobs.append(_packed(tensor))
            told["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            told["data"] = [_text(each) for each in tensor.flat]
        outputs.append(told)
    answer = {"model_name": model, "outputs": outputs}
    if request.id is not None:
        answer["id"] = request.id
    text = json.dumps(answer).encode()
    return b"".join([text, *blobs]), len(text) if blobs else None


def metadata(info: FunctionInfo, model: str) -> dict[str, Any]:
    """What is known of the model's tensors from its schemas; -1 is any length."""
    inputs = _properties(info.input_schema)
    outputs = _properties(info.output_schema)
    if inputs is None:
        inputs = {(info.parameters or ("input",))[0]: _resolved(info.input_schema)}
    return {
        "name": model,
        "versions": [],
        "platform": "zerowake",
        "inputs": [_described(name, schema, info.raw_input) for name, schema in inputs.items()],
        "outputs": [
            _described(name, schema, info.raw_output)
            for name, schema in (outputs or {OUTPUT: _resolved(info.output_schema)}).items()
        ],
    }


# ---------------------------------------------------------------------------- tensors in


def _objects(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadRequest(f"{name} is no array of objects")
    return found


def _parameters(value: Mapping[str, Any]) -> dict[str, Any]:
    found = value.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequest("parameters is no object")
    return found


def _name(value: Mapping[str, Any]) -> str:
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest("a tensor has no name")
    return name


def _input(value: Mapping[str, Any], data: bytes) -> tuple[_Tensor, int]:
    """A tensor, and how much of the binary data is its own."""
    name, datatype, shape = _name(value), value.get("datatype"), value.get("shape")
    what = f"input {name!r:.80}"
    if datatype != BYTES and datatype not in FORMATS:
        raise BadRequest(
            f"{what} has datatype {datatype!r:.40}; known are {BYTES}, {', '.join(FORMATS)}"
        )
    if not isinstance(shape, list) or not all(type(each) is int and each > 0 for each in shape):
        raise BadRequest(f"the shape of {what} is no array of positive whole numbers")
    nbytes = _parameters(value).get("binary_data_size")
    if nbytes is None:
        flat = list(_flattened(value.get("data"), what, len(shape)))
        _check_elements(flat, datatype, what)
        nbytes = 0
    elif type(nbytes) is not int or not 0 <= nbytes <= len(data):
        raise BadRequest(f"the binary_data_size of {what} is not within the data that was sent")
    else:
        flat = _unpacked(data[:nbytes], datatype, what)
    if len(flat) != math.prod(shape):
        raise BadRequest(f"{what} has {len(flat)} elements, its shape {shape} {math.prod(shape)}")
    return _Tensor(name, datatype, shape, flat), nbytes


def _flattened(data: Any, what: str, depth: int) -> Iterator[Any]:
    """The elements of ``data``, which is flat or nested like its shape, of ``depth`` dimensions."""
    if not isinstance(data, list):
        raise BadRequest(f"{what} has no array of data")
    for each in data:
        if isinstance(each, list) and depth > 1:
            yield from _flattened(each, what, depth - 1)
        else:
            yield each


def _check_elements(flat: list[Any], datatype: str, what: str) -> None:
    if datatype == BYTES:
        kinds: tuple[type, ...] = (str,)
    elif datatype == "BOOL":
        kinds = (bool,)
    else:
        kinds = (int, float) if datatype.startswith("FP") else (int,)
    for each in flat:
        if type(each) not in kinds:
            raise BadRequest(f"{what} is {datatype} and has the element {each!r:.80}")


def _unpacked(data: bytes, datatype: str, what: str) -> list[Any]:
    if datatype != BYTES:
        format_ = FORMATS[datatype]
        count, rest = divmod(len(data), struct.calcsize(f"<{format_}"))
        if rest:
            raise BadRequest(f"the binary data of {what} ends within an element of {datatype}")
        return list(struct.unpack(f"<{count}{format_}", data))
    found, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data) or at + 4 > len(data):
            raise BadRequest(f"the binary data of {what} ends within an element of {BYTES}")
        found.append(data[at + 4 : end])
        at = end
    return found


def _items(info: FunctionInfo, columns: dict[str, _Tensor]) -> list[Any]:
    counts = {tensor.shape[0] if tensor.shape else 1 for tensor in columns.values()}
    if len(counts) > 1:
        raise BadRequest(
            f"the inputs have {', '.join(map(str, sorted(counts)))} rows; their leading dimensions "
            "count items and must be the same"
        )
    rows = {name: _rows(tensor, info.raw_input) for name, tensor in columns.items()}
    schema = _resolved(info.input_schema)
    fields = _properties(schema)
    is_object = fields is not None or schema.get("type") == "object"
    if not is_object and len(columns) == 1:
        return next(iter(rows.values()))
    if not is_object and schema:
        raise BadRequest(f"{info.name} takes one input, and {len(columns)} came")
    return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]


def _rows(tensor: _Tensor, as_bytes: bool) -> list[Any]:
    flat = tensor.flat
    if tensor.datatype == BYTES:
        if as_bytes:
            flat = [each.encode() if isinstance(each, str) else each for each in flat]
        else:
            try:
                flat = [each if isinstance(each, str) else each.decode() for each in flat]
            except UnicodeDecodeError:
                raise BadRequest(f"input {tensor.name!r:.80} is not text in UTF-8") from None
    if not tensor.shape:
        return flat
    size = math.prod(tensor.shape[1:])
    return [_nested(flat[at : at + size], tensor.shape[1:]) for at in range(0, len(flat), size)]


def _nested(flat: list[Any], shape: list[int]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    size = math.prod(shape[1:])
    return [_nested(flat[at : at + size], shape[1:]) for at in range(0, len(flat), size)]


# ---------------------------------------------------------------------------- tensors out


def _columns(results: list[Any]) -> dict[str, list[Any]]:
    """Results by field where all have the same, else whole."""
    first = results[0]
    if not isinstance(first, dict) or not first:
        return {OUTPUT: results}
    if not all(isinstance(each, dict) and each.keys() == first.keys() for each in results):
        return {OUTPUT: results}
    return {name: [each[name] for each in results] for name in first}


def _tensor(name: str, values: list[Any]) -> _Tensor:
    """What is no tensor of one kind (objects, ragged lists, nulls) becomes its JSON text, in BYTES."""
    shape = _shape(values)
    if shape is not None:
        flat = list(_flattened(values, name, len(shape)))
        kinds = {type(each) for each in flat}
        if kinds <= {str} or kinds <= {bytes}:
            return _Tensor(name, BYTES, shape, flat)
        if kinds == {bool}:
            return _Tensor(name, "BOOL", shape, flat)
        if kinds == {int} and all(-(1 << 63) <= each < 1 << 63 for each in flat):
            return _Tensor(name, "INT64", shape, flat)
        if kinds <= {int, float} and float in kinds:
            return _Tensor(name, "FP64", shape, flat)
    return _Tensor(name, BYTES, [len(values)], [json.dumps(each) for each in values])


def _shape(value: Any) -> list[int] | None:
    """The shape of nested lists; None when they are ragged, or have no elements."""
    if not isinstance(value, list):
        return []
    if not value:
        return None
    inner = [_shape(each) for each in value]
    if inner[0] is None or any(each != inner[0] for each in inner):
        return None
    return [len(value), *inner[0]]


def _packed(tensor: _Tensor) -> bytes:
    if tensor.datatype != BYTES:
        return struct.pack(f"<{len(tensor.flat)}{FORMATS[tensor.datatype]}", *tensor.flat)
    encoded = [each.encode() if isinstance(each, str) else each for each in tensor.flat]
    return b"".join(part for each in encoded for part in (len(each).to_bytes(4, "little"), each))


def _text(element: Any) -> Any:
    if not isinstance(element, bytes):
        return element
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise BadRequest("the result is not text: ask for it with binary_data") from None


# ---------------------------------------------------------------------------- schemas


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a reference at its top."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        found = schema.get("$defs", {}).get(reference.removeprefix("#/$defs/"), {})
        return found if isinstance(found, Mapping) else {}
    return schema


def _properties(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of an object; None for what is none, or has none that are known."""
    found = _resolved(schema).get("properties")
    return found if isinstance(found, dict) and found else None


_DATATYPES = {"boolean": "BOOL", "integer": "INT64", "number": "FP64"}


def _described(name: str, schema: Any, is_raw: bool) -> dict[str, Any]:
    shape = [-1]
    while isinstance(schema, dict) and "array" in schema.get("type", ()) and not is_raw:
        shape.append(-1)
        schema = schema.get("items", {})
    kind = schema.get("type") if isinstance(schema, dict) and not is_raw else None
    datatype = _DATATYPES.get(kind, BYTES) if isinstance(kind, str) else BYTES
    if isinstance(kind, list) and "number" in kind:
        datatype = "FP64"
    return {"name": name, "datatype": datatype, "shape": shape}
