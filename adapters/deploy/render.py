"""Templates: text with ``<<name>>`` where a value belongs, and lines that are there or not.

A line that begins with ``<<?name>>`` is kept where the value is something, ``<<!name>>`` where it is
nothing. No more than that, so that what is rendered reads like its template.
"""

import re
from collections.abc import Mapping
from importlib.resources import files

from zerowake.runtime.errors import ConfigError

_VALUE = re.compile(r"<<(\w+)>>")
_LINE = re.compile(r"<<([?!])(\w+)>>")
_SAFE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_.:/@+=~-]{0,999}")


def template(path: str) -> str:
    """A file of infra/ by its path there; it ships with the package."""
    return files("zerowake.adapters.deploy").joinpath("infra", *path.split("/")).read_text("utf-8")


def render(text: str, values: Mapping[str, object]) -> str:
    """``text`` with its values. Raises KeyError for one that is not given."""
    lines = []
    for line in text.splitlines():
        if mark := _LINE.match(line):
            if bool(values[mark[2]]) != (mark[1] == "?"):
                continue
            line = line[mark.end() :]
        lines.append(_VALUE.sub(lambda found: str(values[found[1]]), line))
    return "\n".join(lines) + "\n"


def plain(what: str, text: str) -> str:
    """``text`` if it can stand in YAML and JSON as it is. Raises ConfigError naming ``what``."""
    if text and not _SAFE.fullmatch(text):
        raise ConfigError(f"{what} is {text!r:.80}; wanted letters, digits and _ . : / @ + = ~ -")
    return text
