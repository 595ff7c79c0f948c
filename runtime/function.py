"""The author's side: ``@function`` on a class or handler, and what it finds out about it.

Knows no snapshots, processes or HTTP. Everything that can be wrong with a declaration is refused
where it is declared, except examples: those are only checked where they are used.
"""

import inspect
import re
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, overload

from zerowake.runtime import framework
from zerowake.runtime.errors import BadResult, DeclarationError, InvalidInput
from zerowake.runtime.exchange import ReplyHead, RequestHead
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.invocation import NOWHERE, Origin
from zerowake.runtime.jsontext import encode_json, parse_json
from zerowake.runtime.schema import Codec, codec
from zerowake.runtime.settings import Batch, Settings, check_names
from zerowake.runtime.signature import read_signature

if TYPE_CHECKING:
    from zerowake.runtime.local import Local

__all__ = [
    "Batch",
    "Context",
    "Function",
    "Kind",
    "Settings",
    "function",
    "function_of",
    "http_function",
]

ATTRIBUTE = "__zerowake__"
HTTP_TIMEOUT_S = 300.0  # as functions-framework's own server, and Cloud Run
# Its own server has threads: such a function mostly waits, and forks are small.
HTTP_INSTANCES = (0, 8)
MAX_NAME_CHARS = 63
AnyTarget = TypeVar("AnyTarget", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler may know about its call. deadline_s: on the clock of ``time.monotonic``.

    invocation_id is unique; what ``origin`` tells (request_id, trace, tenant, client_context) is the
    caller's.
    """

    invocation_id: str
    function_name: str
    deadline_s: float
    origin: Origin = NOWHERE
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)

    def remaining_s(self) -> float:
        """Seconds until the caller is given up; negative when that has passed."""
        return self.deadline_s - self.clock()


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """One declared function.

    target: the author's class or handler; of kind HTTP, what takes a ``RequestHead`` and a body and
    gives a ``ReplyHead`` and a body. parameters: names of what is taken from the body;
    several of them are an object's fields, a single one is the body itself. takes_context: the
    handler wants a Context too.
    """

    target: Callable[..., Any]
    kind: Kind
    settings: Settings
    examples: tuple[Any, ...]
    parameters: tuple[str, ...]
    takes_context: bool
    input: Codec
    output: Codec

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def several(self) -> bool:
        return len(self.parameters) > 1

    def decode(self, body: bytes) -> Any:
        """The value of ``body``, or a dict of values by parameter if there are several.

        Raises BadRequest (no JSON) or InvalidInput (does not fit, every fault listed).
        """
        return self.input.decode(body if self.input.raw else parse_json(body))

    def encode(self, result: Any) -> bytes:
        """One result, or one item of a stream, as the caller gets it. Raises BadResult."""
        return self.output.encode(result)

    def make(self) -> Any:
        """The object after ``load`` and before ``wake``; for a handler the handler itself."""
        if self.kind.is_function:
            return self.target
        made = self.target()
        if hasattr(made, "load"):
            made.load()
        return made

    def check_examples(self) -> list[bytes]:
        """The examples as bodies. Raises DeclarationError for one that does not fit the input."""
        bodies = []
        for index, example in enumerate(self.examples):
            try:
                body = self.body(example)
                self.decode(body)
            except InvalidInput as error:
                raise DeclarationError(f"{self.name}: examples[{index}]: {error}") from error
            bodies.append(body)
        return bodies

    def body(self, value: Any) -> bytes:
        """``value`` as a caller would send it: JSON, or the bytes themselves. Raises InvalidInput."""
        if self.input.raw and isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if self.input.raw:
            raise InvalidInput(f"the input is {type(value).__name__}, {self.name} takes bytes")
        try:
            return encode_json(value, what="the input")
        except BadResult as error:
            raise InvalidInput(str(error)) from error

    def describe(self, target: str, name: str, examples: Sequence[Any]) -> FunctionInfo:
        """What a snapshot's manifest says of it. target: ``module:Name`` in the snapshot's code."""
        return FunctionInfo(
            name=name,
            target=target,
            kind=self.kind,
            settings=self.settings,
            parameters=self.parameters,
            input_schema=self.input.schema,
            output_schema=self.output.schema,
            raw_input=self.input.raw,
            raw_output=self.output.raw,
            description=inspect.cleandoc(self.target.__doc__ or ""),
            examples=tuple(examples),
        )

    def local(self) -> "Local":
        """The function in this process, loaded and awake, for unit tests and notebooks."""
        from zerowake.runtime.local import Local

        return Local(self)


def function_of(target: object) -> Function:
    """The declaration on a class or handler. Raises DeclarationError where there is none."""
    found = getattr(target, "__dict__", {}).get(ATTRIBUTE)
    if isinstance(found, Function):
        return found
    name = getattr(target, "__qualname__", repr(target))
    if isinstance(getattr(target, ATTRIBUTE, None), Function):
        raise DeclarationError(f"{name} only inherits from a function; put @function above it too")
    hint = f", {framework.HINT}" if isinstance(target, types.FunctionType) else ""
    raise DeclarationError(f"{name} is no function; put @zerowake.function above it{hint}")


def http_function(
    target: Callable[[RequestHead, bytes], tuple[ReplyHead, bytes]], name: str
) -> Function:
    """One that answers requests. It may have effects, so no call of it is made twice."""
    anything = codec(Any, where=name)
    return Function(
        target=target,
        kind=Kind.HTTP,
        settings=Settings(
            name=_snake(name)[:MAX_NAME_CHARS],
            timeout_s=HTTP_TIMEOUT_S,
            instances=HTTP_INSTANCES,
            retry=False,
        ),
        examples=(),
        parameters=(),
        takes_context=False,
        input=anything,
        output=anything,
    )


@overload
def function(target: AnyTarget, /) -> AnyTarget: ...
@overload
def function(
    *,
    batch: Batch | None = None,
    examples: Sequence[Any] = (),
    timeout_s: float = 30,
    instances: tuple[int, int] = (0, 1),
    threads: int | None = None,
    retry: bool = True,
    name: str | None = None,
) -> Callable[[AnyTarget], AnyTarget]: ...
def function(target: Any = None, /, **settings: Any) -> Any:
    """Declare a class with ``predict``, or a ``handler(event, context)``, as a function.

    batch: ``predict`` takes a list. examples: bodies that callers may send; they are the probe at
    freeze and the warm-up. The rest is described at ``Settings``. The class or handler itself is
    returned, with ``.local()`` for unit tests. Raises DeclarationError, saying what to do instead.
    """

    def declare(target: Any) -> Any:
        _attach(target, _read(target, settings))
        return target

    known = ["examples", *(setting.name for setting in fields(Settings))]
    check_names("@function", settings, known)
    return declare if target is None else declare(target)


def _attach(target: Any, declared: Function) -> None:
    if ATTRIBUTE in vars(target):
        raise DeclarationError(f"{target.__qualname__} has @function twice; remove one")
    if "local" in vars(target) or (hasattr(target, "local") and not hasattr(target, ATTRIBUTE)):
        raise DeclarationError(
            f"{target.__qualname__} has an attribute local of its own, where @function puts its "
            "own; rename it"
        )
    setattr(target, ATTRIBUTE, declared)
    is_handler = isinstance(target, types.FunctionType)
    target.local = declared.local if is_handler else staticmethod(declared.local)


def _read(target: Any, settings: dict[str, Any]) -> Function:
    if not isinstance(target, type | types.FunctionType):
        raise DeclarationError(
            f"@function is on {target!r}; put it on a class with predict, or on a plain function"
        )
    examples = settings.get("examples", ())
    try:
        if not isinstance(examples, list | tuple):
            raise DeclarationError(f"examples is {examples!r}; wanted a list of inputs")
        given = {name: value for name, value in settings.items() if name != "examples"}
        if given.get("name") is None:
            given["name"] = _snake(target.__name__)
        checked = Settings(**given)
        found = read_signature(target, batched=checked.batch is not None)
    except DeclarationError as error:
        raise DeclarationError(f"{target.__qualname__}: {error}") from error
    return Function(
        target=target,
        settings=checked,
        examples=tuple(examples),
        kind=found.kind,
        parameters=found.parameters,
        takes_context=found.takes_context,
        input=found.input,
        output=found.output,
    )


_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _snake(name: str) -> str:
    """MyModel -> my_model, HTTPModel -> http_model."""
    words = _WORD_STARTS.sub("_", name)
    return words.lower().strip("_")
