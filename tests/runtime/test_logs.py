"""Log lines: the gateway's own, and what a function prints."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from zerowake.runtime import logs
from zerowake.runtime.config import LogFormat
from zerowake.runtime.logs import FunctionOutput, print_exception


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streams and loggers as they were."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    logger = logging.getLogger("zerowake")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, level, logger.propagate = before
    logger.setLevel(level)


def printed(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capfd.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def output(log_format: LogFormat = "json") -> FunctionOutput:
    made = FunctionOutput("embed", log_format)
    made.install()
    return made


def test_each_printed_line_is_one_log_line(capfd: pytest.CaptureFixture[str]) -> None:
    output()
    print("one\ntwo")
    print("to", "stderr", file=sys.stderr, flush=True)
    lines = printed(capfd)
    assert [(line["stream"], line["message"]) for line in lines] == [
        ("stdout", "one"),
        ("stdout", "two"),
        ("stderr", "to stderr"),
    ]
    assert {(line["level"], line["function"], line["pid"]) for line in lines} == {
        ("PRINT", "embed", os.getpid())
    }
    assert "invocations" not in lines[0]


def test_a_line_printed_in_pieces_is_written_whole(capfd: pytest.CaptureFixture[str]) -> None:
    made = output()
    print("half", end="")
    assert printed(capfd) == []
    print(" and half")
    sys.stdout.writelines(["no ", "end"])
    made.flush()
    made.flush()  # nothing is left
    assert [line["message"] for line in printed(capfd)] == ["half and half", "no end"]


@pytest.mark.parametrize(
    "invocations, tags",
    [
        ((), {}),
        (("a1",), {"invocations": ["a1"]}),
        (("a1", "b2"), {"invocations": ["a1", "b2"]}),
    ],
)
def test_lines_name_the_invocations_that_run(
    capfd: pytest.CaptureFixture[str], invocations: tuple[str, ...], tags: dict[str, Any]
) -> None:
    with output().during(*invocations):
        print("x\ny", end="")
    print("after")
    *during, after = printed(capfd)
    assert len(during) == 2
    for line in during:
        assert {k: v for k, v in line.items() if k.startswith("invocation")} == tags
    assert not any(key.startswith("invocation") for key in after)


def test_what_is_the_runtimes_own_is_no_print(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with output().during("a1"):
        print("half", end="", file=sys.stderr)
        logging.getLogger("zerowake.executor").error("two\nlines")
    first, second = printed(capfd)
    assert (first["level"], first["message"]) == ("PRINT", "half")
    assert (second["level"], second["message"]) == ("ERROR", "two\nlines")
    assert second["invocations"] == ["a1"]


def test_text_lines_carry_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    with output("text").during("a1", "b2"):
        print("hello")
    line = capfd.readouterr().err
    assert line.endswith(
        f" PRINT   hello  [function=embed stream=stdout pid={os.getpid()} invocations=a1,b2]\n"
    )


@pytest.mark.parametrize("text", ["ü \U0001f600", "\udc80 no UTF-8", 'a "quote"\t\\'])
def test_any_text_can_be_printed(capfd: pytest.CaptureFixture[str], text: str) -> None:
    output()
    print(text)
    (line,) = printed(capfd)
    assert line["message"] == text


def test_bytes_may_be_written_too(capfd: pytest.CaptureFixture[str]) -> None:
    output()
    for part in (b"gr\xc3", memoryview(b"\xbc\xc3\x9fe \xff\n")):  # a character in two writes
        assert sys.stdout.buffer.write(part) == len(part)
    sys.stdout.buffer.flush()
    (line,) = printed(capfd)
    assert line["message"] == "gr\u00fc\u00dfe \ufffd"


def test_a_log_that_nobody_reads_does_not_fail_the_function() -> None:
    saved = os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    try:
        output()
        print("into the void")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(writer)


def test_a_function_sees_a_stream_of_text_that_can_be_written() -> None:
    output()
    stream = sys.stdout
    assert stream.writable() and not stream.readable() and not stream.isatty()
    assert (stream.encoding, stream.fileno()) == ("utf-8", 2)


def test_the_gateways_lines_are_json_with_their_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    fields = {"function": "f", "pid": 7, "odd": object}
    logging.getLogger("zerowake.gateway").warning("%d died", 2, extra={"fields": fields})
    logging.getLogger("zerowake.gateway").debug("not shown")
    (text,) = capsys.readouterr().err.splitlines()
    line = json.loads(text)
    assert (line["level"], line["message"], line["pid"]) == ("WARNING", "2 died", 7)
    assert line["odd"] == str(object)


def test_the_gateways_lines_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    logs.configure("text")  # a second time does not double them
    log = logging.getLogger("zerowake.gateway")
    log.info("plain")
    log.info("tagged", extra={"fields": {"pid": 7}})
    plain, tagged = capsys.readouterr().err.splitlines()
    assert plain.endswith(" INFO    plain")
    assert tagged.endswith(" INFO    tagged  [pid=7]")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_comes_with_its_traceback(
    capsys: pytest.CaptureFixture[str], log_format: LogFormat
) -> None:
    logs.configure(log_format)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("zerowake").exception("it failed")
    text = capsys.readouterr().err
    assert "it failed" in text and "Traceback" in text and "ValueError: broken" in text
    assert len(text.splitlines()) == 1 or log_format == "text"


def test_a_line_in_many_parts_is_one_and_a_progress_bar_is_many() -> None:
    lines: list[str] = []
    stream = logs._Lines("stdout", lambda _stream, _level, line: lines.append(line))
    for part in ("a", "b", "\n", "10 %\r", "20 %\r", "end"):
        stream.write(part)
    stream.finish()
    assert lines == ["ab", "10 %", "20 %", "end"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_error_of_the_author_is_one_record(
    capfd: pytest.CaptureFixture[str], log_format: LogFormat
) -> None:
    with output(log_format).during("a1"):
        print("before", end="", file=sys.stderr)
        try:
            raise ValueError("broken\nin two")
        except ValueError as error:
            print_exception(error)
    before, *rest = capfd.readouterr().err.splitlines()
    assert "before" in before
    if log_format == "json":
        (record,) = map(json.loads, rest)
        assert (record["level"], record["stream"], record["invocations"]) == (
            "ERROR",
            "stderr",
            ["a1"],
        )
        rest = record["message"].splitlines()
    assert rest[0].endswith("Traceback (most recent call last):")
    assert rest[-2] == "ValueError: broken" and rest[-1].startswith("in two")
    assert log_format == "json" or rest[-1].endswith(f" pid={os.getpid()} invocations=a1]")


def test_elsewhere_an_error_is_printed_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    print_exception(ValueError("broken"))
    assert capsys.readouterr().err == "ValueError: broken\n"
