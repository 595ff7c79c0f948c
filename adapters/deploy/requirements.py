"""The packages that one function needs where it runs, pinned to what is installed here.

Read off the snapshot: its form, the classes that its skeleton names, and what the author's code
imports outside of ``load``. Runs nothing of it.

Packages come with what they declare, imported or not: what a probe has not imported, another call may
(libraries import late), data and shared libraries never are, and some only look whether a package is
installed. Left out is what is known to be of no use where a function runs (``UNUSED``).
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
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
# What a package declares for something that is not done where a function runs: tokenizers downloads
# (``from_pretrained``) through huggingface-hub, and uvicorn is told to read HTTP with httptools.
UNUSED = {"tokenizers": frozenset({"huggingface-hub"}), "uvicorn": frozenset({"h11"})}
LOAD = "load"  # runs where the snapshot is made, not where it is served


def pinned(
    snapshot: Snapshot,
    form: Chosen,
    *,
    http: bool,
    url: str = "",
    extra: Iterable[str] = (),
    declared: bool = False,
) -> list[str]:
    """``name==version`` of all packages that the function needs, with what these need; sorted.

    http: whether requests come over HTTP. url: where the snapshot is fetched from. extra: further
    distributions, such as what ``predict`` imports by name only. declared: with what is known to be
    unused, too; it always comes with packages that are ``extra`` or that the author's code imports. To
    be installed with --no-deps: for a torch-free form torch comes without what it needs, for only its
    libraries are used. Raises ConfigError naming what is not installed here.
    """
    extra = tuple(extra)
    wanted = [*GATEWAY, *(HTTP if http else ()), *extra, *_store(url)]
    if form.needs_torch:
        wanted += TENSORS
    provided = metadata.packages_distributions()
    held, imported = modules(snapshot, form)
    whole = set(extra)
    for module in sorted(held | imported):
        if module == "torch" and form.name is FormName.TORCH_FREE:
            continue  # its libraries come below; a plain function that imports it needs all of it
        if module not in provided:
            raise ConfigError(
                f"the code of {snapshot.manifest.name} imports {module}, which no installed package "
                "brings; install it, or import it in load if only load needs it"
            )
        wanted += provided[module]
        if module in imported:
            whole.update(provided[module])
    found = _closure(wanted, {} if declared else UNUSED, whole)
    if form.name is FormName.TORCH_FREE:  # torch's libraries, and nothing that its Python needs
        found |= {"torch": _version("torch")}
    return [f"{name}=={found[name]}" for name in sorted(found)]


def modules(snapshot: Snapshot, form: Chosen) -> tuple[set[str], set[str]]:
    """The top-level modules of other packages that the object is made of, and that the author's code
    imports."""
    named = named_modules(snapshot, form.compiled)
    own = names.own_modules(snapshot.manifest.code.files)
    sources = {_module(path): path for path in snapshot.manifest.code.files}
    todo = {_module(snapshot.manifest.code.entry)} | (named & own)
    seen: set[str] = set()
    found: set[str] = set()
    while todo:
        module = todo.pop()
        seen.add(module)
        source = read_file(snapshot, f"code/{sources[module]}") if module in sources else b""
        for imported in _imports(ast.parse(source), module):
            if imported in own:
                todo |= {imported} - seen
            else:
                found.add(imported)
    ours = (
        {name.partition(".")[0] for name in own} | set(sys.stdlib_module_names) | {"zerowake", ""}
    )
    held, imports = ({name.partition(".")[0] for name in each} - ours for each in (named, found))
    return held, imports


def imports_torch(snapshot: Snapshot, form: Chosen) -> bool:
    """Whether the process has torch: of its form's own, or because the author's code imports it."""
    if form.name is FormName.PLAIN:
        return "torch" in modules(snapshot, form)[1]
    return form.needs_torch


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


def _closure(
    wanted: Iterable[str], unused: Mapping[str, Set[str]], whole: Iterable[str]
) -> dict[str, str]:
    """Distribution -> version, of these and of what they declare to need here, but for what is
    ``unused``: package -> what it declares. whole: packages of which nothing is left out."""
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError as error:
        raise ConfigError(
            "zerowake bundle reads requirements with packaging: pip install packaging"
        ) from error
    complete = {canonicalize_name(name) for name in whole}
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
        left_out = frozenset[str]() if name in complete else unused.get(name, frozenset())
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) in left_out:
                continue
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
