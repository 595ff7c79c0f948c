"""The same calls through us and through AWS's own Python client, on the same emulator."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import parts
import pytest
from emulator import Emulator
from support import Reply

CLIENT = ("awslambdaric==4.2.2", "snapshot-restore-py==1.0.0")
HANDLER = """
def handler(event, context):
    if event.get("fail"):
        raise ValueError("asked to")
    return {"echo": event["value"]}
"""
VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    2**53,
    "é\u2028",
    "\U0001f600",
    [],
    {},
    {"a": [1, {"b": None}]},
]


@pytest.fixture(scope="module", params=[None, 2], ids=["on-demand", "managed"])
def both(
    request: pytest.FixtureRequest,
    emulate: Callable[..., Emulator],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Emulator, Emulator]]:
    ours = emulate("zoo.py:Echo", slots=request.param)
    folder = tmp_path_factory.mktemp("handler")
    folder.chmod(0o755)  # for the user of a managed instance
    (folder / "app.py").write_text(HANDLER)
    python = parts.venv(*CLIENT)
    command = [str(python), "-m", "awslambdaric", "app.handler"]
    env = {"PYTHONPATH": str(folder)}
    theirs = Emulator(command, [folder, python.parents[1]], slots=request.param, env=env)
    yield ours, theirs
    theirs.close()


def ask(each: Emulator, event: bytes) -> Reply:
    """As Lambda itself asks: with the type, by which their client tells JSON on managed instances."""
    return each.invoke(event, {"Content-Type": "application/json"})


def test_values(both: tuple[Emulator, Emulator]) -> None:
    for value in VALUES:
        event = json.dumps({"value": value}).encode()
        ours, theirs = (ask(each, event) for each in both)
        assert (ours.status, ours.json()) == (theirs.status, theirs.json())
        assert ours.json() == {"echo": value}


def test_errors(both: tuple[Emulator, Emulator]) -> None:
    for event in (b'{"value": 1, "fail": true}', b"no JSON", b"{}", b""):
        ours, theirs = (ask(each, event) for each in both)
        assert ours.status == theirs.status
        assert theirs.json().keys() - ours.json().keys() == set(), theirs.json()
        for name in ("errorMessage", "errorType", "requestId"):
            assert type(ours.json()[name]) is type(theirs.json()[name])
        assert isinstance(ours.json()["stackTrace"], list)
    ours, theirs = (ask(each, b'{"value": 1, "fail": true}').json() for each in both)
    assert ours["errorMessage"] == "ValueError: asked to"
    assert (theirs["errorType"], theirs["errorMessage"]) == ("ValueError", "asked to")
