"""The author's source files: which belong to a function, whether they may run, and running exactly them.

Knows no torch and no object. Code is a program: it runs only when this user made the snapshot,
when the operator named its digest, or when the same bytes were already installed here.
"""

import ast
import hashlib
import importlib.util
import linecache
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, NamedTuple, cast

from zerowake.snapshot import names
from zerowake.snapshot.errors import FreezeError, UntrustedCode, ZerowakeError
from zerowake.snapshot.mapping import open_file
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.state import is_trusted

if TYPE_CHECKING:  # to import it at run time brings tempfile, shutil and what these need
    from importlib.abc import Loader


class CodeFiles(NamedTuple):
    """Source files by path relative to ``root``, with their bytes. ``entry`` is one of them."""

    root: Path
    entry: str
    files: Mapping[str, bytes]

    @property
    def sha256(self) -> dict[str, str]:
        return {path: hashlib.sha256(data).hexdigest() for path, data in self.files.items()}

    @property
    def digest(self) -> str:
        return code_digest(self.sha256)


def code_digest(sha256: Mapping[str, str]) -> str:
    """SHA-256 over the lines "<hex>  <path>", sorted by path: what sha256sum prints."""
    lines = "".join(f"{sha256[path]}  {path}\n" for path in sorted(sha256))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def collect(entry: Path, root: Path) -> CodeFiles:
    """The file ``entry`` and what it imports from below ``root``, directly or through others.

    Imports inside functions count; what the interpreter or site-packages provide does not belong.
    Raises FreezeError when a file does not parse, or its name is no Python identifier or would
    shadow a library's.
    """
    root = root.resolve()
    files: dict[str, bytes] = {}
    start = entry.resolve().relative_to(root).as_posix()
    todo = [start, *_packages_above(start, root)]
    package = start.rpartition("/")[0].partition("/")[0]  # only its files belong, if there is one
    while todo:
        path = todo.pop()
        if path in files:
            continue
        if not path.isascii() or not all(map(str.isidentifier, _module_name(path).split("."))):
            raise FreezeError(
                f"{root / path} cannot be imported by its name; use letters, digits, _"
            )
        if not names.may_be_own(_module_name(path)):
            raise FreezeError(
                f"{root / path} would stand before the module {_module_name(path)!r} of Python or a "
                "library; give the file another name"
            )
        data = (root / path).read_bytes()
        files[path] = data
        try:
            tree = ast.parse(data, str(root / path))
        except (SyntaxError, ValueError) as error:
            raise FreezeError(f"{root / path} does not parse: {error}") from error
        for module in _imports(tree, path):
            if not package or module.partition(".")[0] == package:
                todo += _find(module, root)
    return CodeFiles(root, start, {path: files[path] for path in sorted(files)})


def load_code(snapshot: Snapshot, *, trusted: frozenset[str], code_dir: Path | None) -> CodeFiles:
    """The code to run for ``snapshot``, every file of it with the digest that the manifest names.

    From the snapshot when it is trusted (made here by this user, or named in ``trusted``); else
    from ``code_dir``; else from an installed module of the entry's name. Raises UntrustedCode
    naming the first file that differs or is missing.
    """
    code = snapshot.manifest.code
    if code_dir is None and is_trusted(snapshot.digest, trusted):
        try:
            return _read(snapshot.path / "code", code.entry, code.files, "the snapshot")
        except UntrustedCode as error:
            raise UntrustedCode(f"{error} Copy or freeze the snapshot again.") from None
    how = (
        f"To run the snapshot's own code, name it: --trust {snapshot.digest} (on a platform, "
        "ZEROWAKE_TRUST takes it). To run yours, give the directory that holds the same files: --code DIR."
    )
    try:
        if code_dir is not None:
            return _read(code_dir.resolve(), code.entry, code.files, str(code_dir))
        installed = _installed_root(code.entry)
        if installed is None or not _is_function_code(installed, code.entry, code.files):
            raise UntrustedCode(
                f"the code of {snapshot.manifest.name!r} was not made here by this user, and no "
                f"installed module {_module_name(code.entry)!r} declares it ({code.entry})."
            )
        return _read(installed, code.entry, code.files, str(installed))
    except UntrustedCode as error:
        changed = _unlike_its_name(snapshot)
        other = "" if not trusted else " It has none of the digests that --trust names."
        raise UntrustedCode(f"{error}{changed}{other} {how}") from None


def _unlike_its_name(snapshot: Snapshot) -> str:
    """A sentence where the folder's name ends in the start of another digest, as freeze gives it."""
    named = re.search("-([0-9a-f]{12})$", snapshot.path.name)
    if named is None or snapshot.digest.startswith(f"sha256:{named[1]}"):
        return ""
    return (
        f" Its digest is not that of its name, {snapshot.path.name}: it was changed after it was "
        "frozen, or renamed; copy or freeze it again if you do not know why."
    )


def in_words(error: BaseException) -> str:
    """``error`` for a message, with the innermost place in installed code that it came through."""
    codes = [finder.code for finder in sys.meta_path if isinstance(finder, _Finder)]
    own = {str(code.root / path): path for code in codes for path in code.files}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in own]
    where = (
        f" ({own[frames[-1].filename]}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    )
    kind = "" if isinstance(error, ZerowakeError) else f"{type(error).__name__}: "
    return f"{kind}{error}{where}"


def install(code: CodeFiles) -> None:
    """From now on, imports of the code's modules give exactly these bytes.

    Modules of these names that came from elsewhere are dropped. Installing the same code again
    does nothing.
    """
    for finder in sys.meta_path:
        if isinstance(finder, _Finder) and finder.code.digest == code.digest:
            return
    finder = _Finder(code)
    mine = finder.modules.keys()
    sys.meta_path[:] = [
        other
        for other in sys.meta_path
        if not (isinstance(other, _Finder) and other.modules.keys() & mine)
    ]
    for name in mine & sys.modules.keys():
        del sys.modules[name]
    sys.meta_path.insert(0, finder)


class _Finder:
    """Serves modules from bytes in memory, so that nothing changes between check and import."""

    def __init__(self, code: CodeFiles) -> None:
        self.code = code
        self.modules: dict[str, str | None] = {}  # None: a package without __init__.py
        for path in code.files:
            name = _module_name(path)
            self.modules[name] = path
            while "." in name:
                name = name.rpartition(".")[0]
                self.modules.setdefault(name, None)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.modules:
            return None
        file = self.modules[name]
        if file is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(self.code.root.joinpath(*name.split(".")))]
            return spec
        spec = ModuleSpec(name, cast("Loader", self), origin=str(self.code.root / file))
        spec.has_location = True
        if file.endswith("__init__.py"):
            spec.submodule_search_locations = [str((self.code.root / file).parent)]
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # as usual

    def exec_module(self, module: ModuleType) -> None:
        exec(self.get_code(module.__name__), vars(module))

    def get_source(self, name: str) -> str:
        return importlib.util.decode_source(self.code.files[self._file(name)])

    def get_code(self, name: str) -> CodeType:
        file = self._file(name)
        origin = str(self.code.root / file)
        source = self.get_source(name)
        # tracebacks show what runs, also when the file on disk has changed since
        linecache.cache[origin] = (len(source), None, source.splitlines(True), origin)
        code = compile(self.code.files[file], origin, "exec", dont_inherit=True)
        assert isinstance(code, CodeType)
        return code

    def _file(self, name: str) -> str:
        file = self.modules[name]
        assert file is not None
        return file


def _read(root: Path, entry: str, wanted: Mapping[str, str], where: str) -> CodeFiles:
    files: dict[str, bytes] = {}
    for path, sha256 in sorted(wanted.items()):
        file = root / path
        if not file.is_file():
            raise UntrustedCode(f"{path} is missing in {where}; the snapshot was frozen with it.")
        with open(open_file(file.resolve()), "rb") as source:
            files[path] = source.read()
        found = hashlib.sha256(files[path]).hexdigest()
        if found != sha256:
            raise UntrustedCode(
                f"{path} in {where} differs from what was frozen: "
                f"its SHA-256 is {found[:12]}..., the manifest says {sha256[:12]}..."
            )
    return CodeFiles(root, entry, files)


def _installed_root(entry: str) -> Path | None:
    """The directory from which Python would import ``entry``; only its top package is looked up,
    since looking up a submodule would import its parents."""
    top = entry.partition("/")[0].removesuffix(".py")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or isinstance(spec.loader, _Finder):
        return None
    origin = Path(spec.origin)
    return origin.parent.parent if origin.name == "__init__.py" else origin.parent


def _is_function_code(root: Path, entry: str, files: Mapping[str, str]) -> bool:
    """Whether installed files may stand in for a stranger's without being asked: they must be one
    package (or file) whose entry imports zerowake. Otherwise a snapshot could name any installed
    package as its code, and callers would reach its functions."""
    top = entry.partition("/")[0]
    if any(path.partition("/")[0] != top for path in files):
        return False
    try:
        tree = ast.parse((root / entry).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    return any(module.partition(".")[0] == "zerowake" for module in _imports(tree, entry))


def _module_name(path: str) -> str:
    (name,) = names.own_modules({path: None})
    return name


def _imports(tree: ast.AST, path: str) -> Iterator[str]:
    """Every module that the source could mean, as absolute dotted names."""
    package = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _find(module: str, root: Path) -> list[str]:
    """The files below ``root`` that an import of ``module`` would run."""
    parts = module.split(".")
    if not names.may_be_own(module):
        return []
    found = []
    for count in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:count])
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                found.append(file.relative_to(root).as_posix())
                break
        else:
            if not base.is_dir():
                break
    return found


def _packages_above(path: str, root: Path) -> list[str]:
    parents = [parent / "__init__.py" for parent in Path(path).parents]
    return [file.as_posix() for file in parents if len(file.parts) > 1 and (root / file).is_file()]
