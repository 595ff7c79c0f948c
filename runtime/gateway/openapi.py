"""The OpenAPI 3.1 document: one operation a function, with the schemas from its snapshot.

Pure: values in, a value out. Knows neither FastAPI nor how a call is served.
"""

import re
from collections.abc import Iterable
from typing import Any

from zerowake.runtime.gateway.problems import PROBLEM_SCHEMA
from zerowake.runtime.info import FunctionInfo, Kind

Json = dict[str, Any]

# Keywords whose value is data, and keywords whose value maps free names to schemas.
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})

_PROBLEMS = {
    400: "The body does not parse.",
    403: "The order came from a page of another site.",
    404: "There is no such function; the known ones are named.",
    409: "It cannot sleep there: calls or its settings keep it awake, or it cannot be forked.",
    413: "The body is over the limit.",
    415: "The body is compressed.",
    422: "The input does not fit the schema, or the function refused it.",
    429: "The queue is full; come again after Retry-After.",
    431: "The headers are over the limit.",
    500: "The function raised.",
    502: "The process died under this input, twice.",
    503: "The function does not start, or the server is draining.",
    504: "The function ran longer than its timeout.",
}
_HEADERS: Json = {
    "Server-Timing": {
        "description": "Where the time went, in ms: queue, restore, predict, total ...",
        "schema": {"type": "string"},
    },
    "Zerowake-Depth": {
        "description": "How deep the function slept when the call came.",
        "schema": {"type": "string", "enum": ["hot", "prewarmed", "zygote", "cold"]},
    },
    "Zerowake-Invocation": {
        "description": "The id of the call in logs; X-Request-Id or traceparent, if sent.",
        "schema": {"type": "string"},
    },
}


def document(functions: Iterable[FunctionInfo], control: Json, version: str) -> Json:
    """The document of the whole server; ``control`` is FastAPI's, for the routes that it serves."""
    listed = list(functions)
    components = dict(control.get("components", {}))
    schemas: Json = {**components.get("schemas", {}), "Problem": PROBLEM_SCHEMA}
    paths: Json = {}
    for info in listed:
        paths[f"/invoke/{info.name}"] = {"post": _operation(info, schemas)}
    if len(listed) == 1:
        only = paths[f"/invoke/{listed[0].name}"]["post"]
        paths["/"] = {"post": {**only, "operationId": f"{only['operationId']}_root"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Zerowake", "version": version},
        "paths": {**paths, **control.get("paths", {}), **_probes()},
        "components": {
            **components,
            "schemas": schemas,
            "headers": _HEADERS,
            "responses": {
                "Problem": {"description": "An error (RFC 9457).", "content": _PROBLEM_CONTENT}
            },
        },
    }


def problem_responses(*statuses: int) -> Json:
    """Entries for ``responses``: what each of these statuses means here."""
    return {
        str(status): {"description": _PROBLEMS[status], "content": _PROBLEM_CONTENT}
        for status in statuses
    }


_PROBLEM_CONTENT: Json = {
    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
}


def _operation(info: FunctionInfo, schemas: Json) -> Json:
    return {
        "operationId": f"invoke_{info.name}",
        "summary": info.name,
        "description": info.description,
        "tags": ["functions"],
        "requestBody": {"required": True, "content": _input(info, schemas)},
        "responses": {
            "200": {
                "description": "A stream of results."
                if info.kind is Kind.STREAM
                else "The result.",
                "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS},
                "content": _output(info, schemas),
            },
            **problem_responses(*(status for status in _PROBLEMS if status not in (403, 409))),
        },
    }


def _input(info: FunctionInfo, schemas: Json) -> Json:
    if info.kind is Kind.HTTP:  # whatever it takes; any method, and any path below this one
        return {"*/*": {}}
    if info.raw_input:
        return {"application/octet-stream": {}}
    media: Json = {"schema": _adopt(info.input_schema, f"{info.name}.input", schemas)}
    if info.examples:
        media["examples"] = {
            f"example{number}": {"value": value} for number, value in enumerate(info.examples, 1)
        }
    return {"application/json": media}


def _output(info: FunctionInfo, schemas: Json) -> Json:
    if info.kind is Kind.HTTP:
        return {"*/*": {}}
    if info.raw_output:
        return {"application/octet-stream": {}}
    schema = _adopt(info.output_schema, f"{info.name}.output", schemas)
    if info.kind is not Kind.STREAM:
        return {"application/json": {"schema": schema}}
    # OpenAPI 3.1 cannot say "a sequence of": the schema is that of one line or event.
    return {"application/x-ndjson": {"schema": schema}, "text/event-stream": {"schema": schema}}


def _adopt(schema: Json, name: str, schemas: Json) -> Json:
    """Put ``schema`` and its ``$defs`` among ``schemas`` under ``name``; returns a reference to it."""
    name = _key(name)
    own = {key: value for key, value in schema.items() if key not in ("$defs", "$schema", "$id")}
    schemas[name] = _moved(own, name)
    for inner, definition in schema.get("$defs", {}).items():
        schemas[f"{name}.{_key(inner)}"] = _moved(definition, name)
    return {"$ref": f"#/components/schemas/{name}"}


def _moved(node: Any, name: str) -> Any:
    """``node`` with the references of a schema that now lives at ``name`` made right."""
    if isinstance(node, list):
        return [_moved(item, name) for item in node]
    if not isinstance(node, dict):
        return node
    moved = {}
    for key, value in node.items():
        if key in _DATA:
            moved[key] = value
        elif key in _NAMED and isinstance(value, dict):
            moved[key] = {inner: _moved(schema, name) for inner, schema in value.items()}
        elif key in ("$ref", "$dynamicRef") and isinstance(value, str):
            moved[key] = _target(value, name)
        elif key == "mapping" and isinstance(value, dict):  # pydantic's discriminator
            moved[key] = {tag: _target(to, name) for tag, to in value.items()}
        else:
            moved[key] = _moved(value, name)
    return moved


def _target(reference: str, name: str) -> str:
    if not (reference == "#" or reference.startswith("#/")):
        return reference
    steps = reference.split("/")[1:]
    if steps[:1] == ["$defs"] and len(steps) > 1:
        inner = steps[1].replace("~1", "/").replace("~0", "~")
        name, steps = f"{name}.{_key(inner)}", steps[2:]
    return "/".join([f"#/components/schemas/{name}", *steps])


def _key(name: str) -> str:
    """``name`` as a component may be called."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _probes() -> Json:
    ok = {"description": "Yes."}
    unready = problem_responses(503)
    return {
        "/livez": {
            "get": {"tags": ["operation"], "summary": "Is it alive?", "responses": {"200": ok}}
        },
        "/readyz": {
            "get": {
                "tags": ["operation"],
                "summary": "Does it take calls?",
                "responses": {"200": ok, **unready},
            }
        },
        "/metrics": {
            "get": {
                "tags": ["operation"],
                "summary": "Prometheus metrics",
                "responses": {"200": {"description": "Text.", "content": {"text/plain": {}}}},
            }
        },
    }
