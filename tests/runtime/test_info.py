"""``zerowake.runtime.info``: what a stranger's manifest may say of its function."""

from pathlib import Path
from typing import Any

import pytest
from support import function_info, zerowake

from zerowake.runtime.info import FunctionInfo
from zerowake.snapshot.errors import DamagedSnapshot
from zerowake.snapshot.manifest import Manifest
from zerowake.snapshot.store import open_snapshot

GOOD = Path(__file__).parents[1] / "hostile" / "corpus" / "good"


def manifest(**changed: Any) -> Manifest:
    """A sound manifest whose function is described with ``changed`` fields; None leaves one out."""
    fields = {**function_info("good").to_json(), **changed}
    function = {name: value for name, value in fields.items() if value is not None}
    return open_snapshot(GOOD).manifest._replace(function=function)


def test_what_is_written_is_read_again() -> None:
    info = FunctionInfo.of(manifest(description="Does.", examples=[1, {"a": 2}], kind="stream"))
    assert (info.description, info.examples, info.kind) == ("Does.", (1, {"a": 2}), "stream")
    assert info.to_json() == FunctionInfo.of(manifest(**info.to_json())).to_json()


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"target": None}, "target is missing"),
        ({"more": 1}, "more is unknown"),
        ({"target": "os"}, "target is 'os'"),
        ({"target": "app:Name\nx"}, "target is"),
        ({"kind": "daemon"}, "'daemon' is not a valid Kind"),
        ({"kind": ["item"]}, "kind is ['item']; wanted str"),
        ({"settings": []}, "settings is []; wanted dict"),
        ({"settings": {"name": "x", "instances": 7}}, "instances is 7"),
        ({"settings": {"name": "x", "batch": {"max_size": "many"}}}, "max_size is 'many'"),
        ({"settings": {}}, "name"),
        ({"settings": {"name": "x", "colour": 1}}, "unknown name 'colour'"),
        ({"parameters": [1]}, "parameters are not all names"),
        ({"input_schema": True}, "input_schema is True; wanted dict"),
        ({"raw_output": 1}, "raw_output is 1; wanted bool"),
        ({"description": {}}, "description is {}; wanted str"),
        ({"examples": "x"}, "examples is 'x'; wanted list"),
    ],
)
def test_odd_fields_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DamagedSnapshot) as refusal:
        FunctionInfo.of(manifest(**changed))
    assert str(refusal.value).startswith("manifest.json: function: ") and said in str(refusal.value)


@pytest.mark.parametrize("verb", ["inspect", "serve"])
def test_the_command_line_refuses_them(verb: str) -> None:
    run = zerowake(verb, GOOD)  # sound but for a function that this runtime cannot read
    assert run.returncode == 1
    assert run.stderr.startswith(f"zerowake {verb}: manifest.json: function: ")
