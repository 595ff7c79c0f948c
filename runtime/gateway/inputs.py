"""Whether a body fits a function's input schema.

Knows no HTTP and none of the author's code: what a schema cannot say, validators in the instance check.
"""

from itertools import islice
from typing import TYPE_CHECKING, Any

from zerowake.runtime.errors import InvalidInput
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.jsontext import parse_json, pointer
from zerowake.snapshot.errors import DamagedSnapshot

if TYPE_CHECKING:
    import jsonschema_rs

MAX_ERRORS = 20
MAX_MESSAGE_CHARS = 300  # messages quote the value, and a value may be megabytes


class Inputs:
    """Checks bodies; a function's validator is built at its first call."""

    def __init__(self) -> None:
        self._validators: dict[str, tuple[FunctionInfo, jsonschema_rs.Validator | None]] = {}

    def check(self, info: FunctionInfo, body: bytes) -> None:
        """Raises BadRequest when ``body`` does not parse, InvalidInput when it does not fit."""
        if info.raw_input or info.kind is Kind.HTTP:
            return
        value = parse_json(body)
        built_for, validator = self._validators.get(info.name, (None, None))
        if built_for is not info:
            validator = self._build(info)
        if validator is None or validator.is_valid(value):
            return
        errors = [_describe(error) for error in islice(validator.iter_errors(value), MAX_ERRORS)]
        where = ", ".join(error["field"] or "the top level" for error in errors[:3])
        raise InvalidInput(
            f"the body does not fit the input schema of {info.name} at {where}: "
            f"{errors[0]['message']}; /openapi.json has the schema",
            errors=errors,
        )

    def _build(self, info: FunctionInfo) -> "jsonschema_rs.Validator | None":
        validator = _validator(info.input_schema) if info.input_schema else None
        self._validators[info.name] = (info, validator)
        return validator


def check_schemas(info: FunctionInfo) -> None:
    """Raises DamagedSnapshot for what would fail at the first call."""
    for name in ("input_schema", "output_schema"):
        if not (schema := getattr(info, name)):  # anything fits
            continue
        from jsonschema_rs import ValidationError

        try:
            _validator(schema)
        except (ValueError, ValidationError) as error:
            said = str(error)[:MAX_MESSAGE_CHARS]
            raise DamagedSnapshot(
                f"manifest.json: function: {name} is no JSON Schema: {said}"
            ) from None


def _validator(schema: Any) -> "jsonschema_rs.Validator":
    import jsonschema_rs  # 14 ms, with email and decimal: not for functions that take anything

    # offline: a schema may come from a stranger's snapshot and must not make us fetch anything.
    return jsonschema_rs.validator_for(schema, offline=True)


def _describe(error: "jsonschema_rs.ValidationError") -> dict[str, str]:
    message = error.message
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + "..."
    return {"field": pointer((*error.instance_path, *_member(error.kind))), "message": message}


def _member(kind: Any) -> list[str]:
    """The member that is missing or too many: the validator reports the object around it."""
    if (missing := getattr(kind, "property", None)) is not None:
        return [missing]
    return list(getattr(kind, "unexpected", [])[:1])
