"""Tensors to items and results to tensors, and the same with a real client of the protocol."""

import json
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from parts import venv
from platforms import PUSH, PushContainer
from support import PATIENCE_S, function_info

from zerowake.adapters.inference_protocol import InferRequest, metadata, read, write
from zerowake.runtime.errors import BadRequest

KSERVE = next(platform for platform in PUSH if platform.name == "kserve")
CLIENT = (
    "tritonclient==2.73.0",
    "geventhttpclient==2.3.9",
    "gevent==26.9.0",
    "greenlet==3.5.6",
    "numpy==2.4.6",
    "python-rapidjson==1.25",
    "aiohttp==3.14.5",
)
On = Callable[..., PushContainer]

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
ANYTHING = function_info("f")
FIELDS = function_info("f", input_schema=OBJECT, parameters=("a", "b"))
NUMBER = function_info("f", input_schema={"type": "number"})
RAW = function_info("f", raw_input=True, raw_output=True)


def tensor(name: str, datatype: str, shape: list[int], data: Any = None, **more: Any) -> Any:
    told = {"name": name, "datatype": datatype, "shape": shape, **more}
    return told if data is None else {**told, "data": data}


def items(info: Any, *inputs: Any) -> list[Any]:
    return read(info, json.dumps({"inputs": list(inputs)}).encode(), None).items


def test_row_i_of_every_input_is_item_i() -> None:
    a, b = tensor("a", "INT64", [2], [1, 2]), tensor("b", "BYTES", [2], ["x", "y"])
    assert items(FIELDS, a, b) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert items(FIELDS, a) == [{"a": 1}, {"a": 2}]
    assert items(NUMBER, tensor("x", "FP32", [3], [1.5, 2, 3])) == [1.5, 2, 3]
    assert items(NUMBER, tensor("x", "FP32", [], [7.0])) == [7.0]
    assert items(ANYTHING, a, b) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_rows_keep_their_shape_however_they_are_nested(data: list[Any]) -> None:
    assert items(ANYTHING, tensor("x", "INT8", [2, 3], data)) == [[1, 2, 3], [4, 5, 6]]
    assert items(ANYTHING, tensor("x", "INT8", [1, 2, 3], data)) == [[[1, 2, 3], [4, 5, 6]]]
    assert items(ANYTHING, tensor("x", "INT8", [3, 1, 2], data)) == [[[1, 2]], [[3, 4]], [[5, 6]]]


def with_binary(*inputs: tuple[str, str, list[int], bytes], **more: Any) -> tuple[bytes, int]:
    told = [
        tensor(name, datatype, shape, parameters={"binary_data_size": len(data)})
        for name, datatype, shape, data in inputs
    ]
    text = json.dumps({"inputs": told, **more}).encode()
    return text + b"".join(data for *_rest, data in inputs), len(text)


def test_binary_data_stands_behind_the_json_in_the_order_of_the_inputs() -> None:
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"one", "zwö".encode()))
    body, nbytes = with_binary(
        ("a", "INT16", [2], struct.pack("<2h", -5, 6)), ("b", "BYTES", [2], texts)
    )
    assert read(FIELDS, body, nbytes).items == [{"a": -5, "b": "one"}, {"a": 6, "b": "zwö"}]
    body, nbytes = with_binary(("x", "BYTES", [1], struct.pack("<I", 2) + b"\xff\x00"))
    assert read(RAW, body, nbytes).items == [b"\xff\x00"]
    with pytest.raises(BadRequest, match="not text"):
        read(ANYTHING, body, nbytes)


ONE = tensor("x", "INT32", [1], [1])


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "JSON"),
        (b"[]", "inputs"),
        (b"{}", "inputs"),
        (b'{"inputs": []}', "no inputs"),
        (b'{"inputs": [1]}', "inputs"),
        ({"inputs": [ONE, ONE]}, "twice"),
        ({"inputs": [ONE], "id": 5}, "id"),
        ({"inputs": [ONE], "parameters": []}, "parameters"),
        ({"inputs": [ONE], "outputs": [{}]}, "name"),
        ({"inputs": [{"name": "x"}]}, "datatype"),
        ({"inputs": [tensor("x", "INT3", [1], [1])]}, "datatype"),
        ({"inputs": [tensor("x", "INT32", [-1], [1])]}, "shape"),
        ({"inputs": [tensor("x", "INT32", [0], [])]}, "shape"),
        ({"inputs": [tensor("x", "INT32", [True], [1])]}, "shape"),
        ({"inputs": [tensor("x", "INT32", [2], [1])]}, "1 elements"),
        ({"inputs": [tensor("x", "INT32", [1 << 40, 1 << 40], [1])]}, "elements"),
        ({"inputs": [tensor("x", "INT32", [1], ["1"])]}, "'1'"),
        ({"inputs": [tensor("x", "INT32", [1], [True])]}, "True"),
        ({"inputs": [tensor("x", "BOOL", [1], [1])]}, "element 1"),
        ({"inputs": [tensor("x", "BYTES", [1], [1])]}, "element 1"),
        ({"inputs": [tensor("x", "INT32", [1])]}, "no array of data"),
        ({"inputs": [tensor("x", "INT32", [1], parameters={"binary_data_size": 4})]}, "within"),
        ({"inputs": [tensor("x", "INT32", [1], parameters={"binary_data_size": -4})]}, "within"),
        ({"inputs": [tensor("x", "INT32", [1], [[1]])]}, r"element \[1\]"),
        ({"inputs": [ONE, tensor("y", "INT32", [2], [1, 2])]}, "rows"),
    ],
)
def test_a_malformed_request_says_what_is_wrong(body: Any, said: str) -> None:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest, match=said):
        read(ANYTHING, given, None)


@pytest.mark.parametrize("nbytes", [-1, 10_000])
def test_a_header_length_outside_the_body_is_refused(nbytes: int) -> None:
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        read(ANYTHING, json.dumps({"inputs": [ONE]}).encode(), nbytes)


@pytest.mark.parametrize(
    "datatype, data", [("INT32", b"123"), ("BYTES", b"\x05\0\0\0ab"), ("BYTES", b"\x01")]
)
def test_binary_data_that_ends_within_an_element_is_refused(datatype: str, data: bytes) -> None:
    body, nbytes = with_binary(("x", datatype, [1], data))
    with pytest.raises(BadRequest, match="ends within"):
        read(ANYTHING, body, nbytes)


def test_binary_data_that_no_input_names_is_refused() -> None:
    text = json.dumps({"inputs": [ONE]}).encode()
    with pytest.raises(BadRequest, match="1 bytes of binary data came, and the inputs name 0"):
        read(ANYTHING, text + b"x", len(text))


@pytest.mark.parametrize(
    "results, tensors",
    [
        ([1, 2], [("output", "INT64", [2], [1, 2])]),
        ([1, 2.5], [("output", "FP64", [2], [1, 2.5])]),
        ([True, False], [("output", "BOOL", [2], [True, False])]),
        (["a", "b"], [("output", "BYTES", [2], ["a", "b"])]),
        ([[1, 2], [3, 4]], [("output", "INT64", [2, 2], [1, 2, 3, 4])]),
        ([[1], [2, 3]], [("output", "BYTES", [2], ["[1]", "[2, 3]"])]),
        ([None], [("output", "BYTES", [1], ["null"])]),
        ([1 << 70], [("output", "BYTES", [1], [str(1 << 70)])]),
        ([[]], [("output", "BYTES", [1], ["[]"])]),
        ([{"a": 1, "b": "x"}], [("a", "INT64", [1], [1]), ("b", "BYTES", [1], ["x"])]),
        ([{"a": 1}, {"b": 1}], [("output", "BYTES", [2], ['{"a": 1}', '{"b": 1}'])]),
        ([True, 1], [("output", "BYTES", [2], ["true", "1"])]),
    ],
)
def test_results_become_tensors(results: list[Any], tensors: list[Any]) -> None:
    body, nbytes = write(InferRequest("7", [], None, False), "m", results)
    told = json.loads(body)
    assert nbytes is None and (told["id"], told["model_name"]) == ("7", "m")
    assert told["outputs"] == [tensor(*each) for each in tensors]


def test_only_the_outputs_that_are_wanted_come_and_as_they_are_wanted() -> None:
    request = InferRequest(None, [], {"b": True, "a": False}, False)
    body, nbytes = write(request, "m", [{"a": 1, "b": [1.5], "c": 0}])
    assert nbytes is not None
    told = json.loads(body[:nbytes])
    assert [(each["name"], each.get("data")) for each in told["outputs"]] == [
        ("b", None),
        ("a", [1]),
    ]
    assert body[nbytes:] == struct.pack("<d", 1.5) and "id" not in told
    with pytest.raises(BadRequest, match="no output 'z'"):
        write(InferRequest(None, [], {"z": False}, False), "m", [1])
    with pytest.raises(BadRequest, match="binary_data"):
        write(InferRequest(None, [], None, False), "m", [b"\xff"])


def test_metadata_comes_from_the_schemas() -> None:
    numbers = {"type": "array", "items": {"type": "number"}}
    info = function_info("f", input_schema=OBJECT, output_schema=numbers)
    told = metadata(info, "m")
    assert [tuple(each.values()) for each in told["inputs"]] == [
        ("a", "INT64", [-1]),
        ("b", "BYTES", [-1]),
    ]
    assert told["outputs"] == [{"name": "output", "datatype": "FP64", "shape": [-1, -1]}]


# ---------------------------------------------------------------------------- a real client


SCRIPT = """
import json, sys
import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

client = InferenceServerClient(sys.argv[1].removeprefix("http://"))
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("add")
assert client.is_model_ready("mine") and not client.is_model_ready("other")
print(json.dumps(client.get_server_metadata()))
print(json.dumps(client.get_model_metadata("add")))
for binary in (True, False):
    a = InferInput("a", [4], "INT64"); a.set_data_from_numpy(np.arange(4), binary_data=binary)
    b = InferInput("b", [4], "INT32")
    b.set_data_from_numpy(np.array([10, 20, 30, 40], np.int32), binary_data=not binary)
    wanted = [InferRequestedOutput("output", binary_data=binary)]
    for outputs in (wanted, None):
        result = client.infer("add", [a, b], outputs=outputs, request_id="r-1")
        assert result.get_response()["id"] == "r-1", result.get_response()
        print(json.dumps(result.as_numpy("output").tolist()))
text = InferInput("a", [1], "BYTES"); text.set_data_from_numpy(np.array([b"x"], object))
try:
    client.infer("add", [text])
except InferenceServerException as error:
    print(json.dumps([error.status(), error.message()]))
"""


def test_the_official_client_understands_us(on: On) -> None:
    container = on(KSERVE, "zoo.py:Add")
    python = venv(*CLIENT)
    run = subprocess.run(
        [str(python), "-c", SCRIPT, container.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr
    server, model, *results, error = map(json.loads, run.stdout.splitlines())
    assert server["name"] == "zerowake" and server["extensions"] == ["binary_tensor_data"]
    assert [each["name"] for each in model["inputs"]] == ["a", "b"]
    assert results == [[1010, 1021, 1032, 1043]] * 4
    assert error[0] == "422" and "item 0" in error[1]


def test_ids_versions_and_errors_of_the_protocol(on: On) -> None:
    container = on(KSERVE, "zoo.py:Add")
    for model in ("add", "mine"):
        body = {"id": "x", "inputs": [tensor("a", "INT64", [1], [1])]}
        path = f"/v2/models/{model}/versions/1/infer"
        reply = container.request("POST", path, json.dumps(body).encode())
        assert reply.json() == {
            "model_name": model,
            "id": "x",
            "outputs": [tensor("output", "INT64", [1], [1006])],
        }
    unknown = container.request("POST", "/v2/models/other/infer", b"{}")
    assert unknown.status == 404 and list(unknown.json()) == ["error"]
    assert container.request("GET", "/v1/models").json() == {"models": ["mine"]}
    assert container.request("GET", "/v1/models/mine").json() == {"name": "mine", "ready": True}
    odd = {"Inference-Header-Content-Length": "many"}
    assert container.request("POST", "/v2/models/add/infer", b"{}", odd).status == 400
    parameters = {"instances": [{"a": 1}], "parameters": {"b": 1}}
    reply = container.request("POST", "/v1/models/add:predict", json.dumps(parameters).encode())
    assert reply.json() == {"predictions": [1002]}
