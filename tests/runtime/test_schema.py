"""Codecs: what each annotation reads, refuses and writes, and that its schema says the same."""

import datetime
import decimal
import enum
import json
import pathlib
import sys
import typing
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NewType, NotRequired, TypedDict

import jsonschema_rs
import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import torch
import typing_extensions

from zerowake.runtime.errors import BadRequest, BadResult, DeclarationError, InvalidInput
from zerowake.runtime.nodes import MAX_FAULTS
from zerowake.runtime.schema import codec, parse_json


def _short(value: Any) -> str:
    """The same in each process: a set has no order, an address is another one."""
    if isinstance(value, set | frozenset | memoryview):
        return type(value).__name__
    return repr(value)[:40]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Point:
    x: float
    y: float = 0.0
    tags: list[str] = field(default_factory=list)


@dataclass
class Tree:
    value: int
    children: list["Tree"] = field(default_factory=list)


@dataclass
class Checked:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Text(TypedDict):
    text: str
    language: NotRequired[str]


class Hints(TypedDict, total=False):
    top_k: int


class Query(pydantic.BaseModel):
    text: str = pydantic.Field(min_length=1)
    count: int = pydantic.Field(1, alias="n", ge=1)

    @pydantic.field_validator("text")
    @classmethod
    def no_shouting(cls, text: str) -> str:
        if text.isupper():
            raise ValueError("no shouting")
        return text


class Strict(pydantic.BaseModel, strict=True):
    day: datetime.date
    pair: tuple[int, int]


class Node(pydantic.BaseModel):
    children: "list[Node]" = []


UserId = NewType("UserId", int)
STAMP = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)

FITTING: list[tuple[Any, Any, Any]] = [
    (Any, {"a": [1, None]}, {"a": [1, None]}),
    (object, 1, 1),
    (None, None, None),
    (bool, True, True),
    (int, 3, 3),
    (int, 3.0, 3),
    (int, 10**400, 10**400),
    (float, 2, 2.0),
    (float, 2.5, 2.5),
    (str, "é", "é"),
    (list[bytes], ["aGk="], [b"hi"]),
    (list, [1, "a"], [1, "a"]),
    (list[int], [], []),
    (Sequence[int], [1], [1]),
    (tuple, [1, "a"], (1, "a")),
    (tuple[int, ...], [1, 2], (1, 2)),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[()], [], ()),
    (set[int], [1, 2], {1, 2}),
    (frozenset[str], ["a"], frozenset({"a"})),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict, {"a": 1}, {"a": 1}),
    (Mapping[str, float], {"a": 1}, {"a": 1.0}),
    (int | None, None, None),
    (typing.Optional[int], 4, 4),  # noqa: UP045 - the older spelling is still met
    (bool | int, True, True),
    (int | str, "a", "a"),
    (Point | list[float], [1, 2], [1.0, 2.0]),
    (Literal["a", 1, None], 1, 1),
    (Colour, "blue", Colour.BLUE),
    (Level, 2, Level.HIGH),
    (Literal[Colour.RED], "red", Colour.RED),
    (Annotated[int, "a note"], 1, 1),
    (UserId, 7, 7),
    (Point, {"x": 1}, Point(1.0)),
    (Point, {"x": 1, "y": 2, "tags": ["a"]}, Point(1.0, 2.0, ["a"])),
    (
        Tree,
        {"value": 1, "children": [{"value": 2}]},
        Tree(1, [Tree(2)]),
    ),
    (Text, {"text": "a"}, {"text": "a"}),
    (Text, {"text": "a", "language": "en"}, {"text": "a", "language": "en"}),
    (Hints, {}, {}),
    (Query, {"text": "a", "n": 2}, Query(text="a", n=2)),
    (Strict, {"day": "2024-01-02", "pair": [1, 2]}, Strict(day=STAMP.date(), pair=(1, 2))),
    (list[Node], [{"children": [{}]}], [Node(children=[Node()])]),
    (datetime.datetime, "2024-01-02T03:04:05+00:00", STAMP),
    (datetime.date, "2024-01-02", STAMP.date()),
    (datetime.time, "03:04:05", STAMP.time()),
    (
        uuid.UUID,
        "12345678-1234-5678-1234-567812345678",
        uuid.UUID(int=0x12345678123456781234567812345678),
    ),
    (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
    (pathlib.Path, "a/b", pathlib.Path("a/b")),
]


@pytest.mark.parametrize(("annotation", "value", "wanted"), FITTING, ids=_short)
def test_reads_what_fits(annotation: Any, value: Any, wanted: Any) -> None:
    made = codec(annotation)
    read = made.decode(parse_json(json.dumps(value).encode()))
    assert read == wanted
    assert type(read) is type(wanted)
    jsonschema_rs.validator_for(made.schema).validate(value)


@pytest.mark.parametrize(
    ("annotation", "wanted"), [(a, w) for a, _, w in FITTING if w != 10**400], ids=str
)
def test_writes_what_it_reads(annotation: Any, wanted: Any) -> None:
    made = codec(annotation, output=True)
    sent = parse_json(made.encode(wanted))
    assert codec(annotation).decode(sent) == wanted
    jsonschema_rs.validator_for(made.schema).validate(sent)


MISFITS: list[tuple[Any, Any, list[tuple[str, str]]]] = [
    (None, 0, [("", "wanted null, found 0")]),
    (bool, 1, [("", "wanted true or false, found 1")]),
    (int, True, [("", "wanted an integer, found true")]),
    (int, 1.5, [("", "wanted an integer, found 1.5")]),
    (int, "1", [("", "wanted an integer, found '1'")]),
    (float, True, [("", "wanted a number in the range of a double, found true")]),
    (float, 10**400, [("", "wanted a number in the range of a double, found 1000000000")]),
    (str, None, [("", "wanted a string, found null")]),
    (str, ["x"], [("", "wanted a string, found an array of 1")]),
    (list[bytes], ["a"], [("/0", "wanted bytes in base64")]),
    (list[bytes], ["é"], [("/0", "wanted bytes in base64")]),
    (list[int], {"a": 1}, [("", "wanted an array of an integer, found an object")]),
    (list[int], [1, "b", 3, None], [("/1", "found 'b'"), ("/3", "found null")]),
    (tuple[int, str], [1], [("", "wanted an array of 2")]),
    (tuple[int, str], ["a", 1], [("/0", "an integer"), ("/1", "a string")]),
    (tuple[()], [1], [("", "wanted an array of 0")]),
    (set[int], [1, 1], [("", "duplicates")]),
    (dict[str, int], {"a/b~": "x"}, [("/a~1b~0", "an integer")]),
    (int | None, "a", [("", "wanted an integer or null, found 'a'")]),
    (Point | None, {"y": 1}, [("/x", "required and missing")]),
    (Literal["a", 1], True, [("", "wanted one of 'a', 1, found true")]),
    (Colour, "green", [("", "wanted one of 'red', 'blue', found 'green'")]),
    (Point, {"x": "a", "yy": 1}, [("/x", "a number"), ("/yy", "did you mean 'y'")]),
    (Tree, {"value": 1, "children": [{"value": "a"}]}, [("/children/0/value", "an integer")]),
    (list[Checked], [{"low": 2, "high": 1}], [("/0", "low is above high")]),
    (Text, {"txt": "a"}, [("/text", "missing"), ("/txt", "did you mean 'text'?")]),
    (Text, [], [("", "wanted an object (Text), found an array of 0")]),
    (Hints, {"topk": 1}, [("/topk", "did you mean 'top_k'")]),
    (Query, {"text": "", "n": 0}, [("/text", "at least 1 character"), ("/n", "greater than")]),
    (list[Query], [{"text": "AB"}], [("/0/text", "no shouting")]),
    (datetime.datetime, "yesterday", [("", "a date and time in ISO 8601, found 'yesterday'")]),
    (uuid.UUID, "1", [("", "wanted a UUID")]),
    (decimal.Decimal, "NaN", [("", "a decimal number")]),
    (decimal.Decimal, "x", [("", "a decimal number")]),
    (decimal.Decimal, 1.5, [("", "a decimal number")]),
]


@pytest.mark.parametrize(("annotation", "value", "faults"), MISFITS, ids=_short)
def test_refuses_what_does_not_fit(
    annotation: Any, value: Any, faults: list[tuple[str, str]]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        codec(annotation).decode(value)
    assert caught.value.errors is not None
    assert [error["field"] for error in caught.value.errors] == [place for place, _ in faults]
    for error, (_, words) in zip(caught.value.errors, faults, strict=True):
        assert words in error["message"]


def test_the_schema_refuses_the_same_where_json_schema_can_tell() -> None:
    for annotation, value, _ in MISFITS:
        if annotation not in (list[bytes], list[Checked], list[Query], uuid.UUID) and (
            getattr(annotation, "__module__", "") not in ("datetime", "decimal")
        ):
            schema = codec(annotation).schema
            if value != 10**400:
                assert not jsonschema_rs.validator_for(schema).is_valid(value), (annotation, value)


def test_the_list_of_faults_is_bounded() -> None:
    with pytest.raises(InvalidInput, match="and 49 more") as caught:
        codec(list[int]).decode(["x"] * 10_000)
    assert len(caught.value.errors or ()) == MAX_FAULTS


def test_deep_nesting_is_an_answer_not_a_crash() -> None:
    value: dict[str, Any] = {"value": 1}
    for _ in range(50_000):
        value = {"value": 1, "children": [value]}
    with pytest.raises(InvalidInput, match="nested too deep"):
        codec(Tree).decode(value)


def test_a_name_of_megabytes_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as caught:
        codec(Point).decode({"x": 1, "z" * 5_000_000: 1})
    assert len(str(caught.value.errors)) < 500


def test_an_error_in_a_validator_is_the_authors() -> None:
    @dataclass
    class Broken:
        x: int

        def __post_init__(self) -> None:
            raise KeyError("missing")

    with pytest.raises(KeyError):
        codec(Broken).decode({"x": 1})


def test_a_validator_may_raise_invalid_input() -> None:
    @dataclass
    class Picky:
        x: int

        def __post_init__(self) -> None:
            raise InvalidInput("never good enough")

    with pytest.raises(InvalidInput) as caught:
        codec(list[Picky]).decode([{"x": 1}])
    assert caught.value.errors == [{"field": "/0", "message": "never good enough"}]


# Arrays


def test_arrays_keep_the_dtype_of_their_annotation() -> None:
    read = codec(npt.NDArray[np.float32]).decode([[1, 2.5], [3, 4]])
    assert read.dtype == np.float32
    assert read.tolist() == [[1.0, 2.5], [3.0, 4.0]]
    assert codec(np.ndarray).decode([1, 2]).dtype == np.int64
    assert codec(npt.NDArray[np.uint8]).decode([0, 255]).dtype == np.uint8
    assert codec(npt.NDArray[np.bool_]).decode([True]).dtype == np.bool_
    assert codec(npt.NDArray[np.floating[Any]]).decode([0.5]).dtype == np.float64
    assert codec(npt.NDArray[np.float32]).decode([]).shape == (0,)
    assert codec(torch.Tensor).decode([[1.0, 2.0]]).dtype == torch.float32
    assert codec(torch.Tensor).decode(3).shape == ()


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (np.ndarray, [[1], [1, 2]], "one shape"),
        (np.ndarray, ["a"], "found 'a'"),
        (np.ndarray, [None], "found null"),
        (np.ndarray, {"a": 1}, "found an object"),
        (np.ndarray, "abc", "found 'abc'"),
        (np.ndarray, [10**400], "nested lists of numbers"),
        (npt.NDArray[np.float32], [True], "numbers of type float32, found bool"),
        (npt.NDArray[np.float32], [1e300], "finite numbers in the range of float32"),
        (npt.NDArray[np.int8], [300], "in the range of int8"),
        (npt.NDArray[np.int8], [1.5], "numbers of type int8, found float64"),
        (npt.NDArray[np.uint8], [-1], "in the range of uint8"),
        (npt.NDArray[np.integer[Any]], [1.5], "of kind integer, found float64"),
        (torch.Tensor, [[1], [1, 2]], "one shape"),
        (torch.Tensor, ["a"], "found 'a'"),
        (torch.Tensor, [None], "found null"),
        (torch.Tensor, [10**400], "nested lists of numbers"),
        (torch.Tensor, [1e300], "finite numbers in the range of torch.float32"),
    ],
    ids=_short,
)
def test_arrays_refuse(annotation: Any, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        codec(annotation).decode(value)


@pytest.mark.parametrize(
    "annotation", [np.ndarray, torch.Tensor, npt.NDArray[np.float32]], ids=_short
)
def test_arrays_survive_deep_nesting(annotation: Any) -> None:
    value: Any = 1
    for _ in range(10_000):
        value = [value]
    with pytest.raises(InvalidInput):
        codec(annotation).decode(value)


def test_the_schema_of_an_array_fits_its_values() -> None:
    for annotation, value in [
        (np.ndarray, [[1, 2.5]]),
        (npt.NDArray[np.int64], [1]),
        (npt.NDArray[np.bool_], [[True]]),
        (torch.Tensor, [[1.5]]),
        (torch.Tensor, 1.5),
    ]:
        validator = jsonschema_rs.validator_for(codec(annotation).schema)
        validator.validate(value)
        assert not validator.is_valid(["a"])


# Raw bytes


def test_bytes_at_the_top_are_octets() -> None:
    made = codec(bytes)
    assert made.raw
    assert made.schema["contentMediaType"] == "application/octet-stream"
    assert made.decode(b"\x00\xff") == b"\x00\xff"
    assert made.encode(bytearray(b"\x01")) == b"\x01"
    assert codec(Annotated[bytes, "jpeg"]).raw
    assert not codec(bytes | None).raw
    with pytest.raises(BadResult, match="the result is str, the annotation says bytes"):
        made.encode("text")


# Results


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"a": (1, 2.5, True, None)}, '{"a":[1,2.5,true,null]}'),
        (Point(1.0), '{"x":1.0,"y":0.0,"tags":[]}'),
        ([Colour.RED, Level.HIGH], '["red",2]'),
        (np.arange(4, dtype=np.float32).reshape(2, 2), "[[0.0,1.0],[2.0,3.0]]"),
        ({"n": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True)}, '{"n":3,"f":0.5,"b":true}'),
        (torch.tensor([1.5], requires_grad=True), "[1.5]"),
        (torch.tensor(2, dtype=torch.bfloat16), "2.0"),
        (b"hi", '"aGk="'),
        (memoryview(b"hi"), '"aGk="'),
        ({"b", "a"}, '["a","b"]'),
        (Query(text="é", n=2), '{"text":"é","n":2}'),
        ([STAMP, STAMP.date()], '["2024-01-02T03:04:05+00:00","2024-01-02"]'),
        ("\ud800", '"\\ud800"'),
    ],
    ids=_short,
)
def test_results_become_compact_json(result: Any, text: str) -> None:
    assert codec(Any).encode(result) == text.encode()


class Loop:
    """Whose conversion never ends."""

    def tolist(self) -> "Loop":
        return Loop()


class Empty(enum.Enum):
    pass


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append({"again": cycle})
    return cycle


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"a": [1.0, float("nan")]}, "the result at /a/1 .* nan is no JSON number"),
        (float("inf"), "the result cannot be sent as JSON: inf"),
        ([np.array([[1.0, np.inf]])], "the result at /0/0/1"),
        (Point(float("nan")), "the result at /x"),
        ({"f": object()}, "the result at /f .* a value of type builtins.object"),
        ([lambda: 0], "builtins.function"),
        ({"t": int}, "the class int"),
        ({(1, 2): 3}, r"the key \(1, 2\) is no string"),
        ([1j], "the result at /0 .*complex"),
        (np.array([1j]), "the result at /0 .*complex"),
        (torch.empty(2, device="meta"), "Tensor did not convert"),
        ([10**5000], "an integer of more than 4300 digits"),
        (_cycle(), "contains itself"),
        (_deep(), "nested too deep"),
        (Loop(), "nested too deep"),
        ({float("nan")}, "set did not convert: ValueError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_json_form_is_named(result: Any, words: str) -> None:
    with pytest.raises(BadResult, match=words):
        codec(Any).encode(result)


# JSON text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "line 1 column 1; it is empty"),
        (b'{"a": }', "Expecting value at line 1 column 7"),
        (b'{"a": 1}\n x', "Extra data at line 2 column 2"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b"\xef\xbb\xbf1", "line 1 column 1"),
        (b'["NaN",\n NaN]', "NaN at line 2 column 2"),
        (b'["Infinity", -Infinity]', "-Infinity at line 1 column 14"),
        (b'["\\ud800"]', "without its other half"),
        (b'{"\\uDFFF": 1}', "without its other half"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b"1" * 5000, "^the body has an integer that is too long; the limit is 4300 digits$"),
        (b"[1e999]", "number 1e999, which is out of range"),
        (b'{"a": -' + b"1" * 400 + b".5}", "number -1111.* out of range"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_json_is_refused_with_its_place(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_json(body)


def test_odd_json_that_is_json() -> None:
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
    assert parse_json(b'[1e308, "\\ud83d\\ude00"]')[0] == 1e308
    assert parse_json(b' "\\ud83d\\ude00 \\\\ud800" ') == "\U0001f600 \\ud800"


# Declarations


class Untyped:
    pass


class Pair(typing.NamedTuple):
    a: int


@dataclass
class Holder:
    inner: list[Untyped]


@dataclass
class Dangling:
    inner: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


class Opaque(pydantic.BaseModel, arbitrary_types_allowed=True):
    inner: Untyped


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Untyped, r"predict\(x\): the annotation Untyped has no JSON form; supported are None"),
        (list[Untyped], "Untyped"),
        (Pair, "Pair"),
        (Holder, r"predict\(x\): Holder\(inner\): the annotation Untyped"),
        (Dangling, "'Nowhere' is not defined; define what its annotations name"),
        (Opaque, "pydantic has no schema for it"),
        (dict[int, str], "the names in a JSON object are str"),
        (complex, "complex"),
        (Empty, "it has no values"),
        (Literal[[1]], r"\[1\] is no JSON scalar"),
        (Literal[b"a"], "b'a' is no JSON scalar"),
        ("int", "int"),
        (typing.TypeVar("T"), "~T"),
        (npt.NDArray[np.complex64], "an array of complex64"),
        (typing.Callable[[int], int], "Callable"),
    ],
    ids=_short,
)
def test_unsupported_annotations_are_named(annotation: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        codec(annotation, where="predict(x)")


def test_definitions_of_one_name_are_kept_apart() -> None:
    def make(kind: type) -> type:
        @dataclass
        class Item:
            value: kind  # type: ignore[valid-type]

        return Item

    made = codec(tuple[make(int), make(str)])  # type: ignore[misc]
    assert sorted(made.schema["$defs"]) == ["Item", "Item_2"]
    jsonschema_rs.validator_for(made.schema).validate([{"value": 1}, {"value": "a"}])


def test_schema_of_a_dataclass() -> None:
    assert codec(Point).schema == {
        "$ref": "#/$defs/Point",
        "$defs": {
            "Point": {
                "type": "object",
                "title": "Point",
                "properties": {
                    "x": {"type": "number"},
                    "y": {"type": "number", "default": 0.0},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    }
    assert codec(Point, output=True).schema["$defs"]["Point"]["required"] == ["x", "y", "tags"]


def test_fields_that_are_not_given() -> None:
    @dataclass
    class Derived:
        x: int
        double: int = field(init=False)

        def __post_init__(self) -> None:
            self.double = 2 * self.x

    made = codec(Derived)
    assert made.decode({"x": 2}).double == 4
    assert list(made.schema["$defs"]["Derived"]["properties"]) == ["x"]
    assert made.encode(Derived(2)) == b'{"x":2,"double":4}'


def test_a_pydantic_dataclass_keeps_its_validators() -> None:
    @pydantic.dataclasses.dataclass
    class Amount:
        value: int = pydantic.Field(gt=0)

    with pytest.raises(InvalidInput) as caught:
        codec(list[Amount]).decode([{"value": 1}, {"value": 0}])
    assert [error["field"] for error in caught.value.errors or ()] == ["/1/value"]


def test_a_pydantic_output_is_described_as_it_is_sent() -> None:
    class Area(pydantic.BaseModel):
        side: float

        @pydantic.computed_field  # type: ignore[prop-decorator]
        @property
        def area(self) -> float:
            return self.side**2

    assert codec(Area).schema["$defs"]["Area"]["required"] == ["side"]
    assert codec(Area, output=True).schema["$defs"]["Area"]["required"] == ["side", "area"]
    assert codec(Area, output=True).encode(Area(side=2)) == b'{"side":2.0,"area":4.0}'


def test_typing_extensions_count_as_typing() -> None:
    class Other(typing_extensions.TypedDict):
        text: str
        count: typing_extensions.NotRequired[int]

    made = codec(typing_extensions.TypeAliasType("Others", list[Other]))
    assert made.decode([{"text": "a"}]) == [{"text": "a"}]
    jsonschema_rs.validator_for(made.schema).validate([{"text": "a", "count": 1}])
    item = typing_extensions.TypeVar("item")
    twice = typing_extensions.TypeAliasType("twice", tuple[item, item], type_params=(item,))
    assert codec(twice[int]).schema == codec(tuple[int, int]).schema


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement came with Python 3.12")
def test_a_recursive_alias() -> None:
    names: dict[str, Any] = {}
    exec("type Nested = int | list[Nested]", names)
    made = codec(names["Nested"])
    assert made.decode([1, [2, [3]]]) == [1, [2, [3]]]
    jsonschema_rs.validator_for(made.schema).validate([1, [2]])
    with pytest.raises(InvalidInput) as caught:
        made.decode([1, ["a"]])
    assert caught.value.errors is not None


def test_schemas_are_json() -> None:
    for annotation, _, _ in FITTING:
        json.dumps(codec(annotation).schema)
        jsonschema_rs.meta.validate(codec(annotation).schema)
