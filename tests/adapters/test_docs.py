"""docs/adapters.md: its tables are those of the adapters, and its example runs."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from platforms import PushContainer, PushPlatform
from support import ROOT

PAGE = ROOT / "docs" / "adapters.md"


def test_the_tables_say_what_the_adapters_say() -> None:
    spec = importlib.util.spec_from_file_location("table", ROOT / "docs" / "adapters_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = PAGE.read_text("utf-8")
    assert table.page(text) == text, "run python docs/adapters_table.py"


def test_the_example_is_an_adapter(
    frozen: Callable[[str], Path], containers: list[PushContainer], tmp_path: Path
) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (example,) = [each for each in examples if "class Acme" in each]
    (tmp_path / "acme.py").write_text(example)
    acme = PushPlatform(
        "acme",
        lambda port: {"ACME_PORT": str(port), "PYTHONPATH": f"{ROOT / 'src'}:{tmp_path}"},
        options=("--adapter", "acme:Acme"),
        path=lambda name: "/acme/run",
        many=lambda values: {"args": values},
        unwrap_many=lambda value: value["results"],
        error=lambda value: value["failed"],
        through="/acme/raw",
        probe=("/acme/health", 200, 503, 503),
    )
    container = acme.start(frozen("zoo.py:Batched"))
    containers.append(container)
    container.until_ready()
    answer = container.many([{"do": "a"}, {"do": "b"}])
    assert [item["did"] for item in answer.value] == ["a", "b"]
    failed = container.many([{"do": "a"}, {"do": "refuse"}])
    assert failed.status == 422 and failed.error.startswith("arg 1: ")
    assert container.open_stream({"do": "raw"}).read() == b'{"did":"raw","batch":1}'
