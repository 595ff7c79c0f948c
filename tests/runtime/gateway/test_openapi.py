"""``zerowake.runtime.gateway.openapi``: a valid document, whatever the functions' schemas."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from support import function_info

from zerowake.runtime.gateway.openapi import document
from zerowake.runtime.info import FunctionInfo

TREE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "Leaf": {"type": "object", "properties": {"default": {"$ref": "#/$defs/Leaf"}}},
        "odd name[int]": {"type": "integer"},
    },
    "type": "object",
    "properties": {
        "leaf": {"$ref": "#/$defs/Leaf"},
        "odd": {"$ref": "#/$defs/odd name[int]"},
        "self": {"$ref": "#"},
        "sibling": {"$ref": "#/properties/leaf"},
        "same": {"const": {"$ref": "#/$defs/Leaf"}},
        "either": {
            "oneOf": [{"$ref": "#/$defs/Leaf"}],
            "discriminator": {"propertyName": "kind", "mapping": {"leaf": "#/$defs/Leaf"}},
        },
    },
    "examples": [{"$ref": "data"}],
}


@pytest.fixture
def functions() -> list[FunctionInfo]:
    other = {"$defs": {"Leaf": {"type": "string"}}, "$ref": "#/$defs/Leaf"}
    return [
        function_info(
            "tree",
            input_schema=TREE,
            output_schema=other,
            description="Grows.",
            examples=({"leaf": {}},),
        ),
        function_info("raw", raw_input=True, raw_output=True),
        function_info("words", "stream", output_schema={"type": "string"}),
    ]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in ("const", "examples"):
                yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def resolve(whole: Any, reference: str) -> Any:
    found = whole
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def test_every_reference_leads_somewhere(functions: list[FunctionInfo]) -> None:
    whole = document(functions, {}, "1")
    for reference in references(whole):
        assert reference.startswith("#/components/")
        resolve(whole, reference)


def test_definitions_move_under_the_name_of_their_function(functions: list[FunctionInfo]) -> None:
    schemas = document(functions, {}, "1")["components"]["schemas"]
    assert set(schemas) == {
        "Problem", "tree.input", "tree.input.Leaf", "tree.input.odd_name_int_", "tree.output",
        "tree.output.Leaf", "words.input", "words.output",
    }  # fmt: skip
    properties = schemas["tree.input"]["properties"]
    here = "#/components/schemas/tree.input"
    assert properties["leaf"] == {"$ref": f"{here}.Leaf"}
    assert properties["odd"] == {"$ref": f"{here}.odd_name_int_"}
    assert properties["self"] == {"$ref": here}
    assert properties["sibling"] == {"$ref": f"{here}/properties/leaf"}
    assert properties["either"]["discriminator"]["mapping"] == {"leaf": f"{here}.Leaf"}
    # A property called "default" is a schema, a const is data.
    assert schemas["tree.input.Leaf"]["properties"]["default"] == {"$ref": f"{here}.Leaf"}
    assert properties["same"] == {"const": {"$ref": "#/$defs/Leaf"}}
    assert schemas["tree.output.Leaf"] == {"type": "string"}


def test_every_schema_is_one(functions: list[FunctionInfo]) -> None:
    whole = document(functions, {}, "1")
    for name in whole["components"]["schemas"]:
        root = {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}
        jsonschema_rs.validator_for(root, offline=True)
    tree = {"$ref": "#/components/schemas/tree.input", "components": whole["components"]}
    validator = jsonschema_rs.validator_for(tree, offline=True)
    assert validator.is_valid({"leaf": {}, "odd": 1, "self": {"odd": 2}})
    assert not validator.is_valid({"self": {"odd": "x"}})


def test_bodies_by_kind(functions: list[FunctionInfo]) -> None:
    paths = document(functions, {}, "1")["paths"]
    tree, raw, words = (paths[f"/invoke/{name}"]["post"] for name in ("tree", "raw", "words"))
    assert tree["description"] == "Grows."
    media = tree["requestBody"]["content"]["application/json"]
    assert media["examples"] == {"example1": {"value": {"leaf": {}}}}
    assert set(raw["requestBody"]["content"]) == {"application/octet-stream"}
    assert set(raw["responses"]["200"]["content"]) == {"application/octet-stream"}
    assert set(words["responses"]["200"]["content"]) == {
        "application/x-ndjson", "text/event-stream",
    }  # fmt: skip
    assert {"400", "404", "413", "415", "422", "429", "500", "502", "503", "504"} <= set(
        tree["responses"]
    )
    assert "/" not in paths
    assert "/" in document(functions[:1], {}, "1")["paths"]


def test_the_whole_document_is_openapi(edge: Any, functions: list[FunctionInfo]) -> None:
    from openapi_spec_validator import validate

    for chosen in (functions, functions[:1], []):
        edge.functions.infos = {info.name: info for info in chosen}
        validate(edge.request("GET", "/openapi.json").json())
