"""The packages that one function needs where it runs, pinned to what is installed here.

Read off the snapshot: its form, the classes that its skeleton names, and what the author's code
imports outside of ``load``. Runs nothing of it.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from zerowake.runtime.errors import ConfigError
from zerowake.runtime.forms import Chosen, FormName, named_modules
from zerowake.snapshot import names
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.store import read_file

# What the processes of ``zerowake run`` import, by distribution; with HTTP in, and with tensors.
GATEWAY = ("orjson", "jsonschema-rs", "prometheus-client", "fastapi")
HTTP = ("uvicorn", "httptools", "uvloop")
TENSORS = ("torch", "numpy")
# What reads a store, by the URL's scheme; with fsspec where no other package is named.
STORES = {
    "s3": ("boto3",),
    "http": (),
    "https": (),
    "gs": ("fsspec", "gcsfs"),
    "az": ("fsspec", "adlfs"),
    "abfs": ("fsspec", "adlfs"),
    "hf": ("fsspec", "huggingface-hub"),
}
LOAD = "load"  # runs where the snapshot is made, not where it is served


def pinned(
    snapshot: Snapshot, form: Chosen, *, http: bool, url: str = "", extra: Iterable[str] = ()
) -> list[str]:
    """``name==version`` of all packages that the function needs, with what these need; sorted.

    http: whether requests come over HTTP. url: where the snapshot is fetched from. extra: further
    distributions, such as what ``predict`` imports by name only. To be installed with --no-deps: for
    a torch-free form torch comes without what it needs, for only its libraries are used. Raises
    ConfigError naming what is not installed here.
    """
    wanted = [*GATEWAY, *(HTTP if http else ()), *extra, *_store(url)]
    if form.needs_torch:
        wanted += TENSORS
    provided = metadata.packages_distributions()
    for module in sorted(modules(snapshot, form)):
        if module == "torch" and not form.needs_torch:
            continue
        if module not in provided:
            raise ConfigError(
                f"the code of {snapshot.manifest.name} imports {module}, which no installed package "
                "brings; install it, or import it in load if only load needs it"
            )
        wanted += provided[module]
    found = _closure(wanted)
    if form.name is FormName.TORCH_FREE:  # torch's libraries, and nothing that its Python needs
        found |= {"torch": _version("torch")}
    return [f"{name}=={found[name]}" for name in sorted(found)]


def modules(snapshot: Snapshot, form: Chosen) -> set[str]:
    """The top-level modules of other packages that an instance imports."""
    named = named_modules(snapshot, form.compiled)
    own = names.own_modules(snapshot.manifest.code.files)
    sources = {_module(path): path for path in snapshot.manifest.code.files}
    todo = {_module(snapshot.manifest.code.entry)} | (named & own)
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        seen.add(module)
        source = read_file(snapshot, f"code/{sources[module]}") if module in sources else b""
        for imported in _imports(ast.parse(source), module):
            if imported in own:
                todo |= {imported} - seen
            else:
                named.add(imported)
    tops = {name.partition(".")[0] for name in named - own}
    own_tops = {name.partition(".")[0] for name in own}
    return tops - own_tops - set(sys.stdlib_module_names) - {"zerowake", ""}


def _store(url: str) -> tuple[str, ...]:
    scheme, colon, _ = url.partition("://")
    return STORES.get(scheme, ("fsspec",)) if colon else ()


def _module(path: str) -> str:
    (module,) = names.own_modules({path: None})
    return module


def _imports(tree: ast.AST, module: str) -> Iterator[str]:
    """What is imported in ``tree``, but for what only ``load`` imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == LOAD:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, module)


def _closure(wanted: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, of these and of what they need here."""
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError as error:
        raise ConfigError(
            "zerowake bundle reads requirements with packaging: pip install packaging"
        ) from error
    found: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    todo = [(name, "") for name in wanted]
    while todo:
        name, extra = todo.pop()
        name = canonicalize_name(name)
        if (name, extra) in done or name == "zerowake":
            continue
        done.add((name, extra))
        found[name] = _version(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(requirement.name, "")]
                todo += [(requirement.name, each) for each in requirement.extras]
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"the package {name} belongs into the bundle and is not installed here; pip install {name}"
        ) from None
