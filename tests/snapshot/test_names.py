"""``zerowake.snapshot.names``: the allow-list."""

import re
from pathlib import Path

import pytest

from zerowake.snapshot import names
from zerowake.snapshot.errors import ForbiddenClass


@pytest.mark.parametrize(
    "name", sorted(n for m, ns in names.FUNCTIONS.items() for n in [f"{m}:{x}" for x in ns])
)
def test_every_listed_function_exists(name: str) -> None:
    import importlib

    module = importlib.import_module(name.partition(":")[0])
    names.check(name, names.FUNCTION, frozenset())
    assert callable(names.look_up(name, names.FUNCTION, frozenset(), module))


def test_own_names_are_free_and_no_others() -> None:
    own = names.own_modules({"app.py": 1, "pack/__init__.py": 1, "pack/part.py": 1})
    assert own == {"app", "pack", "pack.part"}
    names.check("pack.part:Outer.Inner", names.OBJECT, own)
    with pytest.raises(ForbiddenClass, match="nothing was imported"):
        names.check("pack.other:Thing", names.OBJECT, own)
    with pytest.raises(ForbiddenClass):
        names.check("os:system", names.FUNCTION, frozenset({"os"}))


def test_the_format_page_has_the_allow_list() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    section = page[page.index("## 5. Names") : page.index("## 6.")]
    rules = [pattern.replace("|", r"\|") for pattern, _ in names._LIBRARIES]
    functions = [function for listed in names.FUNCTIONS.values() for function in listed]
    for name in (*rules, *functions, *names._OBJECT_BASES, *names.BUILTIN_TYPES):
        assert re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", section), name
    for library in names.LIBRARIES:
        assert library in section
