"""What can be known of a function without its code: the ``function`` object of a manifest.

Freeze writes it; gateway, instances and ``inspect`` read it. A snapshot may come from a stranger, so
every field is checked. Knows no classes, processes or HTTP.
"""

import re
from enum import StrEnum
from typing import Any, NamedTuple

from zerowake.runtime.errors import DeclarationError
from zerowake.runtime.settings import Settings
from zerowake.snapshot.errors import DamagedSnapshot
from zerowake.snapshot.manifest import Manifest

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Kind(StrEnum):
    """What is called: ``predict`` on one item, on a list, as a generator; a plain function; or one
    that takes an HTTP request whole and gives a reply."""

    ITEM = "item"
    BATCH = "batch"
    STREAM = "stream"
    HANDLER = "handler"
    HTTP = "http"

    @property
    def is_function(self) -> bool:
        """Whether the function itself is called: no object is made, and nothing of it is frozen."""
        return self in (Kind.HANDLER, Kind.HTTP)

    @property
    def gives_one_result(self) -> bool:
        """Whether a call is answered with one value: neither a stream nor a whole reply."""
        return self not in (Kind.STREAM, Kind.HTTP)


class FunctionInfo(NamedTuple):
    """One function, from its snapshot.

    name: it is served under this one; ``settings.name`` is what the author called it.
    target: ``module:Name`` in the snapshot's code. parameters: names of what the body fills.
    input_schema, output_schema: JSON Schema (2020-12) of one item in and one item out, for a
    stream of one chunk; ``{}`` accepts anything. raw_input, raw_output: bytes as they are
    (application/octet-stream) instead of JSON, the schema is then not looked at.
    examples: JSON-ready inputs that the author declared.
    """

    name: str
    target: str
    kind: Kind
    settings: Settings
    parameters: tuple[str, ...]
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    raw_input: bool = False
    raw_output: bool = False
    description: str = ""
    examples: tuple[Any, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``function`` object; the name stands beside it."""
        fields = self._asdict()
        del fields["name"]
        return {
            **fields,
            "kind": self.kind.value,
            "settings": self.settings.to_json(),
            "parameters": list(self.parameters),
            "examples": list(self.examples),
        }

    @classmethod
    def of(cls, manifest: Manifest) -> "FunctionInfo":
        """Raises DamagedSnapshot, naming the field that is missing, unknown or of a wrong kind."""
        given = manifest.function
        known = {*cls._fields} - {"name"}
        if odd := known ^ given.keys():
            state = "is missing" if min(odd) in known else "is unknown"
            raise DamagedSnapshot(f"manifest.json: function: {min(odd)} {state}")

        def field(name: str, wanted: type) -> Any:
            value = given[name]
            if type(value) is not wanted:
                raise DamagedSnapshot(
                    f"manifest.json: function: {name} is {value!r:.80}; wanted {wanted.__name__}"
                )
            return value

        if not _TARGET.fullmatch(field("target", str)):
            raise DamagedSnapshot(f"manifest.json: function: target is {given['target']!r:.80}")
        if any(not isinstance(name, str) for name in field("parameters", list)):
            raise DamagedSnapshot("manifest.json: function: parameters are not all names")
        try:
            kind = Kind(field("kind", str))
            settings = Settings.from_json(field("settings", dict))
        except (DeclarationError, OverflowError, TypeError, ValueError) as error:
            raise DamagedSnapshot(f"manifest.json: function: {error}") from None
        return cls(
            name=manifest.name,
            target=given["target"],
            kind=kind,
            settings=settings,
            parameters=tuple(given["parameters"]),
            input_schema=field("input_schema", dict),
            output_schema=field("output_schema", dict),
            raw_input=field("raw_input", bool),
            raw_output=field("raw_output", bool),
            description=field("description", str),
            examples=tuple(field("examples", list)),
        )
