"""The author's API: what ``@function`` accepts, what it finds out, and what it refuses to say yes to."""

import json
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypedDict

import jsonschema_rs
import numpy as np
import numpy.typing as npt
import pytest
import torch

import zerowake
from zerowake.runtime.errors import (
    BadRequest,
    BadResult,
    DeclarationError,
    InvalidInput,
    WrongResultCount,
)
from zerowake.runtime.function import Batch, Context, Kind, Settings, function, function_of

ROOT = Path(__file__).parents[2]


class Text(TypedDict):
    text: str


class Vector(TypedDict):
    embedding: list[float]


@function(batch=Batch(max_size=32, window_ms=5), examples=[{"text": "a sentence"}], timeout_s=12)
class Embed:
    """Text to a vector."""

    def load(self) -> None:
        self.size = 3

    def wake(self) -> None:
        self.woken = True

    def predict(self, items: list[Text]) -> list[Vector]:
        assert self.woken
        return [{"embedding": [float(len(item["text"]))] * self.size} for item in items]


@function
class Count:
    def predict(self, up_to: int) -> Iterator[int]:
        yield from range(up_to)


@function(name="scale-it")
class Scale:
    def predict(
        self, array: npt.NDArray[np.float32], factor: float = 2.0
    ) -> npt.NDArray[np.float32]:
        return array * np.float32(factor)


@function
def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    return {"event": event, "name": context.function_name, "in_time": context.remaining_s() > 0}


@function
def shout(event: bytes) -> bytes:
    return event.upper()


# What a declaration says


def test_a_class_stays_the_class_it_was() -> None:
    assert isinstance(Embed, type)
    assert Embed().__class__ is Embed
    declared = function_of(Embed)
    assert declared.target is Embed
    assert declared.kind is Kind.BATCH
    assert declared.settings == Settings("embed", Batch(32, 5), timeout_s=12)
    assert declared.parameters == ("items",)
    assert not declared.several


def test_describe_is_json_for_the_manifest() -> None:
    described = function_of(Embed).describe("app:Embed", "embed", []).to_json()
    assert json.loads(json.dumps(described)) == described
    assert described["target"] == "app:Embed"
    assert described["kind"] == "batch"
    assert described["description"] == "Text to a vector."
    assert Settings.from_json(described["settings"]) == function_of(Embed).settings
    validator = jsonschema_rs.validator_for(described["input_schema"])
    assert validator.is_valid({"text": "a"})
    assert not validator.is_valid([{"text": "a"}])
    jsonschema_rs.validator_for(described["output_schema"]).validate({"embedding": [1.0]})
    assert (described["raw_input"], described["raw_output"]) == (False, False)


def test_kinds() -> None:
    assert function_of(Count).kind is Kind.STREAM
    assert function_of(Count).output.schema == {"type": "integer"}
    assert function_of(Scale).kind is Kind.ITEM
    assert function_of(Scale).several
    assert function_of(handler).kind is Kind.HANDLER
    assert function_of(handler).takes_context
    assert not function_of(shout).takes_context
    assert function_of(shout).input.raw
    assert function_of(shout).output.raw


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("Embed", "embed"),
        ("MyModel", "my_model"),
        ("HTTPModel2X", "http_model2_x"),
        ("_Own", "own"),
    ],
)
def test_the_default_name_is_snake_case(class_name: str, name: str) -> None:
    cls = type(class_name, (), {"predict": lambda self, x: x})
    assert function_of(function(cls)).name == name


def test_annotations_may_be_absent_strings_or_wrapped() -> None:
    @function
    class Plain:
        def predict(self, x):  # type: ignore[no-untyped-def]
            return x

    assert Plain.local()({"any": 1}) == {"any": 1}  # type: ignore[attr-defined]

    @function
    class Strings:
        def predict(self, x: "int") -> "list[Text]":
            return [{"text": "a"}] * x

    assert function_of(Strings).local()(2) == [{"text": "a"}, {"text": "a"}]

    @function
    class NoGrad:
        @torch.inference_mode()
        def predict(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    assert function_of(NoGrad).local()([1, 2]) == [2, 4]

    @function
    class Tokens:
        @torch.no_grad()
        def predict(self, x: int) -> Generator[str, None, None]:
            for index in range(x):
                yield str(index)

    assert function_of(Tokens).kind is Kind.STREAM
    assert list(function_of(Tokens).local()(2)) == ["0", "1"]


def test_future_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "future_app.py").write_text(
        "from __future__ import annotations\n"
        "from typing import NotRequired, TypedDict\n"
        "from zerowake import function\n"
        "class Text(TypedDict):\n"
        "    text: str\n"
        "    language: NotRequired[str]\n"
        "@function\n"
        "class App:\n"
        "    def predict(self, x: Text) -> str:\n"
        "        return x['text']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import future_app  # type: ignore[import-not-found]

    declared = function_of(future_app.App)
    assert declared.input.schema["$defs"]["Text"]["required"] == ["text"]
    assert declared.local()({"text": "a"}) == "a"


def test_function_of_what_is_none() -> None:
    class Child(Embed):
        pass

    with pytest.raises(DeclarationError, match="Child only inherits from a function"):
        function_of(Child)
    with pytest.raises(DeclarationError, match=r"int is no function; put @zerowake\.function"):
        function_of(int)
    assert function_of(function(name="child")(Child)).target is Child


# Bodies in, results out


def test_decode_and_encode() -> None:
    embed = function_of(Embed)
    assert embed.decode(b'{"text": "a"}') == {"text": "a"}
    assert embed.encode({"embedding": [0.5]}) == b'{"embedding":[0.5]}'
    with pytest.raises(BadRequest, match="line 1 column 2"):
        embed.decode(b"{")
    with pytest.raises(InvalidInput, match="/text: required and missing"):
        embed.decode(b"{}")
    assert function_of(shout).decode(b"{") == b"{"


def test_several_parameters_are_an_object_of_their_names() -> None:
    scale = function_of(Scale)
    assert list(scale.decode(b'{"array": [1]}')) == ["array"]
    assert scale.input.schema["properties"]["factor"] == {"type": "number", "default": 2.0}
    with pytest.raises(InvalidInput) as caught:
        scale.decode(b'{"array": [1], "faktor": 3}')
    assert caught.value.errors == [
        {
            "field": "/faktor",
            "message": "unknown field; did you mean 'factor'?; known: array, factor",
        }
    ]


def test_examples_are_checked_when_asked() -> None:
    assert function_of(Embed).check_examples() == [b'{"text":"a sentence"}']

    @function(examples=[{"text": "fine"}, {"txt": "not"}])
    class Late:
        def predict(self, x: Text) -> int:
            return 1

    with pytest.raises(DeclarationError, match=r"late: examples\[1\]: .*/text: required"):
        function_of(Late).check_examples()

    @function(examples=["text"])
    def raw(event: bytes) -> bytes:
        return event

    with pytest.raises(DeclarationError, match=r"examples\[0\]: the input is str, raw takes bytes"):
        function_of(raw).check_examples()


def test_examples_may_be_arrays() -> None:
    @function(examples=[np.zeros((1, 2), np.float32)])
    class Sum:
        def predict(self, x: npt.NDArray[np.float32]) -> float:
            return float(x.sum())

    assert function_of(Sum).check_examples() == [b"[[0.0,0.0]]"]


# local()


def test_local_runs_load_and_wake_and_answers_as_a_caller_sees_it() -> None:
    local = Embed.local()  # type: ignore[attr-defined]
    assert local.predict({"text": "abc"}) == {"embedding": [3.0, 3.0, 3.0]}
    assert local.target.size == 3
    with pytest.raises(InvalidInput, match="did you mean"):
        local({"text": "abc", "texd": 1})
    assert list(function_of(Count).local()(3)) == [0, 1, 2]
    assert function_of(Scale).local()({"array": [1, 2], "factor": 3}) == [3.0, 6.0]
    assert handler.local()({"a": 1}) == {"event": {"a": 1}, "name": "handler", "in_time": True}  # type: ignore[attr-defined]
    assert function_of(shout).local()(b"abc") == b"ABC"


@pytest.mark.parametrize("given", [list, lambda x: np.array(x, "float32"), torch.tensor])
def test_a_module_of_local_takes_what_it_takes_in_an_instance(given: Callable[..., Any]) -> None:
    @function
    class Doubles:
        def load(self) -> None:
            self.model = torch.nn.Linear(2, 1, bias=False).eval()
            self.model.weight.data.fill_(2.0)

        def wake(self) -> None:
            self.woken = self.model([[0.0, 0.5]])

        def predict(self, rows: list[list[float]]) -> list[Any]:
            found = self.model(given(rows))
            return [type(found).__name__, [[float(x) for x in row] for row in found], self.woken]

    kind, found, woken = function_of(Doubles).local()([[1.0, 2.0]])
    assert kind == type(given([])).__name__ and found == [[6.0]] and woken == [[1.0]]


def test_local_says_what_is_wrong_with_results() -> None:
    @function(batch=Batch(2))
    class Two:
        def predict(self, items: list[int]) -> list[int]:
            return [1, 2]

    with pytest.raises(WrongResultCount, match="2 results for a batch of 1 item"):
        function_of(Two).local()(1)

    @function
    class Nan:
        def predict(self, x: int) -> dict[str, float]:
            return {"score": float("nan")}

    with pytest.raises(BadResult, match="the result at /score"):
        function_of(Nan).local()(1)


def test_a_stream_refuses_its_input_before_it_starts() -> None:
    with pytest.raises(InvalidInput):
        function_of(Count).local()("many")


def test_context_counts_down_by_its_clock() -> None:
    context = Context("id", "embed", deadline_s=10.0, clock=lambda: 7.5)
    assert context.remaining_s() == 2.5


# Settings


def test_settings_travel_as_json() -> None:
    settings = Settings("a", Batch(8, 2.5), 1.5, (1, 4), 2, False)
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert Settings.from_json({"name": "a", "batch": {"max_size": 1, "window_ms": 0.0}}).batch == (
        Batch(1)
    )
    with pytest.raises(DeclarationError, match="unknown name 'bach'; did you mean 'batch'"):
        Settings.from_json({"name": "a", "bach": None})


def test_a_batch_of_one_waits_for_nobody() -> None:
    assert Batch(1).window_ms == 0
    assert Batch(2).window_ms == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Batch(0), "max_size is 0; wanted a whole number of at least 1"),
        (lambda: Batch(True), "max_size is True"),
        (lambda: Batch(2.0), "max_size is 2.0"),  # type: ignore[arg-type]
        (lambda: Batch(2, -1), "window_ms is -1; wanted 0 to 10,000 milliseconds"),
        (lambda: Batch(2, 10_001), "window_ms is 10001"),
        (lambda: Batch(2, float("nan")), "window_ms is nan; wanted a finite number"),
        (lambda: Batch(2, "5"), "window_ms is '5'"),  # type: ignore[arg-type]
        (lambda: Batch(1, 5), "max_size=1 has nothing to wait for, but window_ms is 5"),
        (lambda: Settings("a", timeout_s=0), "timeout_s is 0; wanted more than 0 seconds"),
        (lambda: Settings("a", timeout_s=float("inf")), "timeout_s is inf"),
        (lambda: Settings("a", instances=(2, 1)), r"\(2, 1\): the fewest are more than the most"),
        (lambda: Settings("a", instances=(0, 0)), "the most is 0; wanted"),
        (lambda: Settings("a", instances=(-1, 1)), "the fewest is -1"),
        (lambda: Settings("a", instances=1), "instances is 1; wanted"),  # type: ignore[arg-type]
        (lambda: Settings("a", threads=0), "threads is 0"),
        (lambda: Settings("a", retry=1), "retry is 1; wanted True or False"),  # type: ignore[arg-type]
        (lambda: Settings("a", batch=8), r"batch is 8; wanted zerowake\.Batch"),  # type: ignore[arg-type]
        (lambda: Settings("A b"), "name is 'A b'; wanted a lower-case letter"),
        (lambda: Settings("a" * 64), "wanted a lower-case letter"),
        (lambda: Settings("a\n"), "wanted a lower-case letter"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        make()


# Declarations that are refused


def _class(**members: Any) -> type:
    return type("App", (), {"predict": lambda self, x: x, **members})


def _passes_on(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(wrapped)
    def wrapper(*args: Any) -> Any:
        return wrapped(*args)

    return wrapper


async def _coroutine(self: Any, x: int) -> int:
    return x


async def _asynchronous_stream(self: Any, x: int) -> Any:
    yield x


def _stream(self: Any, x: int) -> Any:
    yield x


def _stream_of_no_iterator(self: Any, x: int) -> list[int]:  # type: ignore[misc]
    yield x


def _takes_int(self: Any, items: int) -> list[int]:
    return [items]


def _returns_int(self: Any, items: Sequence[int]) -> int:
    return 1


def _array_batch(self: Any, items: npt.NDArray[np.float32]) -> list[int]:
    return []


def _two(self: Any, a: int, b: int) -> int:
    return a


def _odd_annotation(self: Any, x: dict[int, str]) -> int:
    return 1


def _undefined(self: Any, x: "Missing") -> int:  # type: ignore[name-defined]  # noqa: F821
    return 1


BATCH = {"batch": Batch(4)}


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        (type("App", (), {}), {}, r"App: it has no method predict; write `def predict\(self, x\)`"),
        (_class(predict=3), {}, "a int as predict"),
        (_class(predict=staticmethod(lambda x: x)), {}, "a staticmethod as predict"),
        (_class(predict=lambda self: 1), {}, "predict takes no input"),
        (_class(predict=lambda self, *x: 1), {}, r"predict takes \*x; name its parameters"),
        (_class(predict=lambda self, **x: 1), {}, r"predict takes \*\*x"),
        (_class(predict=lambda self, *, x: 1), {}, "takes x by keyword only"),
        (_class(predict=lambda self, a, b, /: 1), {}, "cannot name a; remove the `/`"),
        (_class(predict=_coroutine), {}, "predict is async, but one thread .* `def predict`"),
        (_class(predict=_passes_on(_coroutine)), {}, "predict is async"),
        (_class(predict=_asynchronous_stream), {}, "predict is async.*`yield`"),
        (_class(predict=_stream_of_no_iterator), {}, r"annotated list\[int\]; .* Iterator\[R\]"),
        (_class(predict=_stream), BATCH, "a batch cannot stream"),
        (_class(predict=_passes_on(_stream)), BATCH, "a batch cannot stream"),
        (_class(predict=_two), BATCH, r"one list of items, but predict takes a, b; .*list\[T\]"),
        (_class(predict=_takes_int), BATCH, r"items is annotated int; annotate it as list\[T\]"),
        (_class(predict=_returns_int), BATCH, r"result of predict is annotated int; .*list\[R\]"),
        (_class(predict=_array_batch), BATCH, "items is annotated"),
        (
            _class(predict=_odd_annotation),
            {},
            r"App: predict\(x\): the annotation dict\[int, str\]",
        ),
        (_class(predict=_undefined), {}, "annotation of predict cannot be read: name 'Missing'"),
        (_class(__init__=lambda self, size: None), {}, "__init__ wants size, but the object"),
        (_class(load=lambda self, path: None), {}, "load wants path"),
        (_class(wake=_coroutine), {}, "wake is async"),
        (_class(load=staticmethod(lambda: None)), {}, "its load is a staticmethod"),
        (_class(local=1), {}, "an attribute local of its own"),
        (type("Ä", (), {"predict": _two}), {}, "name is 'ä'; .*give one as name="),
        (_class(), {"timeout": 3}, "unknown name 'timeout'; did you mean 'timeout_s'"),
        (_class(), {"timeout_s": 0}, "App: timeout_s is 0"),
        (_class(), {"examples": "text"}, "examples is 'text'; wanted a list"),
        (_class(), {"name": ""}, "name is ''"),
        (lambda event: 1, {}, "name is '<lambda>'"),
        (print, {}, "@function is on <built-in function print>"),
        (_stream, {}, "a stream needs a class"),
        (
            _two,
            {"name": "two"},
            r"takes \(event\) or \(event, context\), this one takes self, a, b",
        ),
        (_coroutine, {}, "_coroutine is async"),
        (_takes_int, BATCH, "batch= needs a class"),
    ],
)
def test_refused_declarations(target: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        function(**settings)(target)


def test_a_handler_takes_something() -> None:
    with pytest.raises(DeclarationError, match="this one takes nothing"):

        @function
        def nothing() -> int:
            return 1


def test_twice_is_refused() -> None:
    with pytest.raises(DeclarationError, match="@function twice"):
        function(function(_class()))


def test_errors_name_the_parameter_of_several() -> None:
    def predict(self: Any, a: int, b: complex) -> int:
        return a

    with pytest.raises(DeclarationError, match=r"App: predict\(b\): the annotation complex"):
        function(_class(predict=predict))


@dataclass
class Kept:
    """A dataclass is a class like any other."""

    size: int = 3

    def predict(self, x: int) -> int:
        return x * self.size


def test_a_dataclass_may_be_a_function() -> None:
    assert function_of(function(Kept)).local()(2) == 6


# The front door


def test_all_is_what_is_exported() -> None:
    assert all(hasattr(zerowake, name) for name in zerowake.__all__)
    exported = {name for name in vars(zerowake) if not name.startswith("_")}
    other = {"runtime", "snapshot", "adapters", "TYPE_CHECKING", "Any"}
    assert exported - other <= set(zerowake.__all__)
    with pytest.raises(AttributeError, match="no attribute 'bacth'"):
        zerowake.bacth  # type: ignore[attr-defined]  # noqa: B018


def test_import_does_no_heavy_work() -> None:
    code = (
        "import sys, threading, zerowake\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'asyncio', 'fastapi', 'decimal', 'uuid'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert threading.active_count() == 1\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT / "src", capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()
