"""``zerowake.runtime.logs``: what a function prints becomes lines with the invocation's id."""

import sys

import pytest

from zerowake.runtime.logs import FunctionOutput


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> FunctionOutput:
    """To be installed by the test itself: pytest replaces the streams between its phases."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # so that they are put back
    return FunctionOutput("f", "text")


def test_lines_belong_to_what_runs(
    output: FunctionOutput, capfd: pytest.CaptureFixture[str]
) -> None:
    output.install()
    with output.during("a", "b"):
        print("one\ntwo", end="")
    print("three")
    one, two, three = capfd.readouterr().err.splitlines()
    assert "one  [function=f stream=stdout" in one and one.endswith("invocations=a,b]")
    assert two.endswith("invocations=a,b]")
    assert "invocation" not in three


def test_bytes_may_be_written_too(
    output: FunctionOutput, capfd: pytest.CaptureFixture[str]
) -> None:
    output.install()
    for part in (b"gr\xc3", memoryview(b"\xbc\xc3\x9fe \xff\n")):  # a character in two writes
        assert sys.stdout.buffer.write(part) == len(part)
    sys.stdout.buffer.flush()
    assert "gr\u00fc\u00dfe \ufffd  [function=f stream=stdout" in capfd.readouterr().err
