"""Where a function's source is: ``path/app.py:Class`` or ``package.module:Class``.

Runs no author's code but in ``load_function``; knows nothing of snapshots.
"""

import ast
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zerowake.runtime.errors import DeclarationError, TargetError
from zerowake.snapshot.code import in_words
from zerowake.snapshot.errors import ZerowakeError

if TYPE_CHECKING:
    from zerowake.runtime.exchange import ReplyHead, RequestHead
    from zerowake.runtime.function import Function
    from zerowake.runtime.wsgi import WSGIApp

HEAVY_IMPORT_S = 0.15  # what is slower than this at the top of an app file is worth a word
TOP_REMEDY = (
    "move it into load, and classes that need it (an nn.Module) into a file of their own, which load "
    "imports"
)


class Target(NamedTuple):
    """entry: the source file. root: the folder that its imports start from. module: its dotted name."""

    text: str
    entry: Path
    root: Path
    module: str
    attribute: str

    @property
    def qualified(self) -> str:
        return f"{self.module}:{self.attribute}"


def is_target(text: str) -> bool:
    """Whether ``text`` names source (``...:Name``) rather than a snapshot's folder or URL."""
    return ":" in text and "://" not in text and not Path(text).is_dir()


def parse_target(text: str) -> Target:
    """Find the source file of a target. Raises TargetError with what is missing."""
    location, _, attribute = text.rpartition(":")
    if not location or not attribute.isidentifier():
        raise TargetError(f"{text!r} is no target; write path/app.py:Class or package.module:Class")
    if location.endswith(".py"):
        entry = Path(location).resolve()
        if not entry.is_file():
            raise TargetError(f"there is no file {location}; the path is taken from {Path.cwd()}")
        if not entry.stem.isidentifier():
            raise TargetError(f"{entry.name} cannot be imported: its name is no Python identifier")
        return Target(text, entry, entry.parent, entry.stem, attribute)
    try:
        found = _source_of(location)
    except (ImportError, ValueError) as error:
        raise TargetError(
            f"module {location} is not importable: {error}{_file_instead(location, attribute)}"
        ) from error
    if found is None:
        raise TargetError(
            f"module {location} has no source file on the path; install its package or name the file"
            f"{_file_instead(location, attribute)}"
        )
    root = found.parents[location.count(".") + (found.name == "__init__.py")]
    return Target(text, found, root, location, attribute)


def _source_of(module: str) -> Path | None:
    """The file that an import of ``module`` would run.

    Only its top package is looked up and the rest followed on disk: looking up a submodule would
    import its parents, and the gateway runs no author's code.
    """
    top, *rest = module.split(".")
    if not all(map(str.isidentifier, (top, *rest))):
        return None
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    source = Path(spec.origin) if spec.origin else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for part in rest:
        bases = [folder / part for folder in folders]
        files = (file for base in bases for file in (base / "__init__.py", base.with_suffix(".py")))
        source = next(filter(Path.is_file, files), None)
        if source is None:
            folders = bases  # a package without __init__.py
        else:
            folders = [source.parent] if source.name == "__init__.py" else []
    return source.resolve() if source is not None and source.suffix == ".py" else None


def _file_instead(module: str, attribute: str) -> str:
    """A suggestion where ``module`` lies in the current directory, which is not on the path."""
    file = module.replace(".", "/") + ".py"
    return f"; did you mean {file}:{attribute}?" if Path(file).is_file() else ""


def load_function(qualified: str) -> "Function":
    """Import ``module:attribute`` and return its declaration.

    Raises TargetError with a message of its own for each of: a syntax error, a module that raises
    while it is imported, a name that is not there, one that is no function. A declaration that is
    wrong raises its own DeclarationError.
    """
    from zerowake.runtime import framework
    from zerowake.runtime.function import function_of  # a gateway does without it

    module_name, _, attribute = qualified.partition(":")
    app = None
    try:
        if framework.looks_like_one(module_name, os.environ):
            app = framework.load(module_name, attribute)
        module = importlib.import_module(module_name)
        if app is None and framework.is_registered(attribute):  # by a module that this one imports
            app = framework.load(module_name, attribute)
    except SyntaxError as error:
        raise TargetError(
            f"{module_name} has a syntax error: {error.msg} "
            f"({Path(error.filename or '?').name}, line {error.lineno})"
        ) from error
    except DeclarationError as error:  # an unknown setting, say: clear as it is, but for the place
        raise DeclarationError(in_words(error)) from error
    except ZerowakeError:
        raise
    except BaseException as error:  # SystemExit included: an app file may call sys.exit()
        if isinstance(error, KeyboardInterrupt):
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name == framework.PACKAGE
        remedy = f"; {framework.INSTALL}" if missing else ""
        raise TargetError(
            f"module {module_name} cannot be imported: {in_words(error)}{remedy}"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        known = framework.registered()
        names = sorted(
            name
            for name, value in vars(module).items()
            if hasattr(value, "__zerowake__") or name in known
        )
        raise TargetError(
            f"{module_name} has no {attribute}; its functions: {', '.join(names) or 'none'}"
        )
    return function_of(found) if app is None else _of_requests(app, attribute, found.__doc__)


def _of_requests(app: "WSGIApp", name: str, doc: str | None) -> "Function":
    from zerowake.runtime import wsgi
    from zerowake.runtime.function import http_function

    def answer(head: "RequestHead", body: bytes) -> "tuple[ReplyHead, bytes]":
        return wsgi.call(app, head, body)

    answer.__doc__ = doc
    return http_function(answer, name)


def heavy_imports(target: Target) -> list[str]:
    """Import the libraries at the top of the entry file; say which ones are slow, and where.

    Such an import is paid for by every cold start and by every tool that only looks at the file;
    inside ``load`` it is paid for once, at freeze.
    """
    slow = []
    try:
        tree = ast.parse(target.entry.read_bytes())
    except SyntaxError:
        return []  # the import that follows says it better
    for node in tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            root = name.partition(".")[0]
            if (target.root / f"{root}.py").exists() or (target.root / root).is_dir():
                continue  # the author's own: carried in the snapshot
            if root in sys.modules:
                continue
            started = time.perf_counter()
            try:
                importlib.import_module(name)
            except Exception:
                continue
            seconds = time.perf_counter() - started
            if seconds > HEAVY_IMPORT_S:
                slow.append(
                    f"{target.entry.name}:{node.lineno} imports {name} at the top ({seconds:.1f} s), "
                    f"and every cold start pays for it; {TOP_REMEDY}"
                )
    return slow
