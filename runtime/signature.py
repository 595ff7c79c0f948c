"""What an author's class or handler takes and returns, read from its methods and annotations.

Knows no settings but whether a batch was declared, and calls none of the author's code. What it
cannot serve is refused with a ``DeclarationError`` that says what to write instead.
"""

import contextlib
import inspect
import types
import typing
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, NoReturn

from zerowake.runtime.errors import DeclarationError
from zerowake.runtime.info import Kind
from zerowake.runtime.schema import Codec, Parameter, codec, object_codec


@dataclass(frozen=True, slots=True)
class Signature:
    """parameters: names of what the body fills. takes_context: a handler with a second parameter.

    input, output: of one item, also where ``predict`` takes a list.
    """

    kind: Kind
    parameters: tuple[str, ...]
    takes_context: bool
    input: Codec
    output: Codec


def read_signature(target: type[Any] | types.FunctionType, *, batched: bool) -> Signature:
    """The signature of a class's ``predict`` or of a handler. Raises DeclarationError."""
    if isinstance(target, type):
        return _class_signature(target, batched)
    return _handler_signature(target, batched)


def _class_signature(cls: type[Any], batched: bool) -> Signature:
    _check_lifecycle(cls)
    predict = inspect.getattr_static(cls, "predict", None)
    if not isinstance(predict, types.FunctionType):
        found = "no method predict" if predict is None else f"a {type(predict).__name__} as predict"
        _refuse(f"it has {found}; write `def predict(self, x)`")
    _refuse_async("predict", predict)
    parameters = _parameters("predict", predict)[1:]
    if not parameters:
        _refuse("predict takes no input; write `def predict(self, x)`")
    hints = _hints("predict", predict)
    result = hints.get("return", Any)
    kind = Kind.BATCH if batched else Kind.ITEM
    if _is_generator(predict):
        if batched:
            _refuse("a batch cannot stream; leave batch= out, or return a list from predict")
        kind = Kind.STREAM
        what = "predict yields, so its result"
        result = _element(result, (Iterator, Generator, Iterable), what, "Iterator[R]")
    if batched:
        if len(parameters) > 1:
            names = ", ".join(parameter.name for parameter in parameters)
            _refuse(
                f"a batch is one list of items, but predict takes {names}; put them into a "
                "dataclass or TypedDict T and take `items: list[T]`"
            )
        items = parameters[0].name
        lists = (list, Sequence)
        hints[items] = _element(hints.get(items, Any), lists, f"with batch= {items}", "list[T]")
        result = _element(result, lists, "with batch= the result of predict", "list[R]")
    return Signature(
        kind=kind,
        parameters=tuple(parameter.name for parameter in parameters),
        takes_context=False,
        input=_input("predict", parameters, hints),
        output=codec(result, where="the result of predict", output=True),
    )


def _handler_signature(handler: types.FunctionType, batched: bool) -> Signature:
    name = handler.__name__
    _refuse_async(name, handler)
    if batched:
        _refuse("batch= needs a class with `def predict(self, items: list[T])`")
    if _is_generator(handler):
        _refuse("a stream needs a class whose predict yields; a handler returns one result")
    parameters = _parameters(name, handler)
    by_keyword = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if len(parameters) not in (1, 2) or by_keyword:
        names = ", ".join(parameter.name for parameter in parameters) or "nothing"
        _refuse(f"a handler takes (event) or (event, context), this one takes {names}")
    hints = _hints(name, handler)
    return Signature(
        kind=Kind.HANDLER,
        parameters=(parameters[0].name,),
        takes_context=len(parameters) == 2,
        input=_input(name, parameters[:1], hints),
        output=codec(hints.get("return", Any), where=f"the result of {name}", output=True),
    )


def _check_lifecycle(cls: type[Any]) -> None:
    wanted: list[str] = []
    makers: tuple[Any, ...] = (type(cls).__call__, cls.__new__, cls.__init__)
    # Of Python's own there is nothing to tell, and inspect parses them as text: 3 ms of each start.
    if makers != (type.__call__, object.__new__, object.__init__):
        with contextlib.suppress(TypeError, ValueError):  # a constructor in C: calling it will tell
            wanted = _required(list(inspect.signature(cls).parameters.values()))
    if wanted:
        _refuse(
            f"__init__ wants {', '.join(wanted)}, but the object is made without arguments; "
            "give them defaults, or build from what load(self) reads"
        )
    for name in ("load", "wake"):
        method = inspect.getattr_static(cls, name, None)
        if method is None:
            continue
        if not isinstance(method, types.FunctionType):
            _refuse(f"its {name} is a {type(method).__name__}; write `def {name}(self)`")
        _refuse_async(name, method)
        if wanted := _required(_parameters(name, method)[1:]):
            _refuse(f"{name} wants {', '.join(wanted)}, but it is called without arguments")


def _input(name: str, parameters: list[inspect.Parameter], hints: dict[str, Any]) -> Codec:
    if len(parameters) == 1:
        only = parameters[0]
        if only.kind is inspect.Parameter.KEYWORD_ONLY:
            _refuse(f"{name} takes {only.name} by keyword only, but as its body; remove the `*`")
        return codec(hints.get(only.name, Any), where=f"{name}({only.name})")
    members = {}
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            _refuse(f"{name}: callers cannot name {parameter.name}; remove the `/`")
        required = parameter.default is inspect.Parameter.empty
        members[parameter.name] = Parameter(
            hints.get(parameter.name, Any), required, MISSING if required else parameter.default
        )
    return object_codec(name, members)


def _parameters(name: str, method: types.FunctionType) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(method).parameters.values())
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            _refuse(f"{name} takes {parameter}; name its parameters, they are the schema")
    return parameters


def _required(parameters: list[inspect.Parameter]) -> list[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _hints(name: str, method: types.FunctionType) -> dict[str, Any]:
    try:
        return typing.get_type_hints(method, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise DeclarationError(
            f"an annotation of {name} cannot be read: {error}; define what it names above the "
            "declaration, at the top level of the module"
        ) from error


def _element(annotation: Any, containers: tuple[Any, ...], what: str, example: str) -> Any:
    """R of ``list[R]``, where only some containers will do."""
    if annotation is Any:
        return Any
    origin = typing.get_origin(annotation) or annotation
    if origin not in containers:
        _refuse(f"{what} is annotated {_spelled(annotation)}; annotate it as {example}")
    arguments = typing.get_args(annotation)
    return arguments[0] if arguments else Any


def _spelled(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def _is_generator(method: types.FunctionType) -> bool:
    """Also below a decorator that wraps it."""
    return inspect.isgeneratorfunction(method) or inspect.isgeneratorfunction(
        inspect.unwrap(method)
    )


def _refuse_async(name: str, method: types.FunctionType) -> None:
    inner = inspect.unwrap(method)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        _refuse(
            f"{name} is async, but one thread owns the device and runs one batch at a time; "
            f"write `def {name}`, and `yield` for a stream"
        )


def _refuse(message: str) -> NoReturn:
    raise DeclarationError(message)
