"""``zerowake.runtime.gateway.inputs``: a body against a schema."""

import pytest
from support import function_info

from zerowake.runtime.errors import InvalidInput
from zerowake.runtime.gateway.inputs import (
    MAX_ERRORS,
    MAX_MESSAGE_CHARS,
    Inputs,
    check_schemas,
)
from zerowake.runtime.info import FunctionInfo
from zerowake.snapshot.errors import DamagedSnapshot


def info(schema: dict[str, object]) -> FunctionInfo:
    return function_info("f", input_schema=schema)


def errors_of(schema: dict[str, object], body: bytes) -> list[dict[str, str]]:
    with pytest.raises(InvalidInput) as caught:
        Inputs().check(info(schema), body)
    assert caught.value.errors is not None
    return caught.value.errors


def test_a_function_that_changed_has_its_new_schema() -> None:
    inputs = Inputs()
    with pytest.raises(InvalidInput):
        inputs.check(info({"type": "string"}), b"1")
    inputs.check(info({"type": "integer"}), b"1")


def test_the_field_is_a_pointer_to_what_is_wrong() -> None:
    schema = {"properties": {"a/b~": {"items": {"required": ["x"]}}}, "additionalProperties": False}
    assert errors_of(schema, b'{"a/b~": [{"x": 1}, {}]}')[0]["field"] == "/a~1b~0/1/x"
    assert errors_of(schema, b'{"y": 1}')[0]["field"] == "/y"
    assert errors_of({"type": "string"}, b"1")[0]["field"] == ""


def test_what_is_told_of_a_huge_body_is_small() -> None:
    errors = errors_of({"items": {"type": "string"}}, b"[" + b"1," * 10_000 + b"1]")
    assert len(errors) == MAX_ERRORS
    (error,) = errors_of({"type": "integer"}, b'"' + b"x" * 100_000 + b'"')
    assert len(error["message"]) <= MAX_MESSAGE_CHARS + 3


def test_a_schema_fetches_nothing() -> None:
    with pytest.raises(ValueError, match="disabled"):
        Inputs().check(info({"$ref": "http://127.0.0.1:9/schema"}), b"1")


@pytest.mark.parametrize("schema", [{"type": 5}, {"$ref": "#/$defs/none"}, {"$defs": [1]}])
def test_what_is_no_schema_is_refused_before_it_is_served(schema: dict[str, object]) -> None:
    with pytest.raises(DamagedSnapshot, match="input_schema is no JSON Schema"):
        check_schemas(info(schema))
