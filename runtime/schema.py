"""A codec reads and writes the values of one annotation, and has its JSON Schema (2020-12).

Knows no functions, settings or HTTP. The schema goes into the snapshot, where the gateway validates
from it without the author's code; the codec runs in the instance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zerowake.runtime.annotations import Builder, Parameter
from zerowake.runtime.errors import BadResult, InvalidInput
from zerowake.runtime.jsontext import encode_json, parse_json, pointer
from zerowake.runtime.nodes import ANY, Misfit, Node

__all__ = ["Codec", "Parameter", "codec", "object_codec", "parse_json"]

_RAW_SCHEMA = {
    "type": "string",
    "contentEncoding": "binary",
    "contentMediaType": "application/octet-stream",
}


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """Reads and writes the values of one annotation.

    schema: JSON Schema, self-contained. raw: the annotation is bytes, body and result are octets.
    """

    schema: dict[str, Any]
    raw: bool
    node: Node

    def decode(self, value: Any) -> Any:
        """From parsed JSON (the octets themselves if raw). Raises InvalidInput with every fault."""
        if self.raw:
            return value
        try:
            return self.node.decode(value)
        except Misfit as misfit:
            errors = [{"field": pointer(p), "message": text} for p, text in misfit.faults]
            first = f"{errors[0]['field'] or 'the body'}: {errors[0]['message']}"
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise InvalidInput(f"the input does not fit: {first}{more}", errors=errors) from None
        except RecursionError:
            message = "nested too deep"
            errors = [{"field": "", "message": message}]
            raise InvalidInput(f"the input is {message}", errors=errors) from None

    def encode(self, result: Any) -> bytes:
        """To JSON text (octets if raw). Raises BadResult naming the place that does not convert."""
        if not self.raw:
            return encode_json(result)
        if isinstance(result, bytes | bytearray | memoryview):
            return bytes(result)
        raise BadResult(
            f"the result is {type(result).__name__}, the annotation says bytes; return bytes"
        )


def codec(annotation: Any, *, where: str = "the value", output: bool = False) -> Codec:
    """The codec for one annotation.

    where: names the parameter in errors. output: the schema describes what is sent, which for a
    pydantic model is not what is read. Raises DeclarationError for what JSON cannot carry.
    """
    builder = Builder(where, output=output)
    if builder.unwrap(annotation) is bytes:
        return Codec(_RAW_SCHEMA, True, ANY)
    node = builder.node(annotation)
    return Codec(builder.schema(node), False, node)


def object_codec(title: str, parameters: Mapping[str, Parameter]) -> Codec:
    """The codec for an object of these names, read as a dict of those that are present."""
    builder = Builder()
    node = builder.object(title, parameters, lambda made: made)
    return Codec(builder.schema(node), False, node)
