"""From what the command line names to what the pool serves: a snapshot, and the form that it runs in."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.forms import Chosen, choose
from zerowake.runtime.gateway.base import Flavour
from zerowake.runtime.gateway.inputs import check_schemas
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.target import is_target
from zerowake.snapshot import code, compiled, names
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.store import open_snapshot

# What instances import; libraries that skeletons name come on top.
COMMON_MODULES = ("orjson",)
TORCH_MODULES = ("torch", "zerowake.snapshot.weights", "zerowake.snapshot.staging")
LIBTORCH_MODULE = "zerowake.snapshot.libtorch"


@dataclass(frozen=True, slots=True)
class Opened:
    """A snapshot whose structure, code and description were checked, and its form here."""

    snapshot: Snapshot
    info: FunctionInfo
    form: Chosen

    @property
    def flavour(self) -> Flavour:
        return Flavour.TORCH if self.form.needs_torch else Flavour.LIGHT


def open_target(text: str, config: ServeConfig, *, reload: bool = False) -> Opened:
    """A snapshot, or the snapshot of a source as it is now. Raises TargetError, SnapshotError.

    reload: the source is being worked on, so nobody waits for a compiler.
    """
    path = Path(text)
    if is_target(text):
        from zerowake.runtime.cache import cache_directory, ensure_snapshot

        path = ensure_snapshot(text, cache_directory(os.environ), compiled=not reload)
    snapshot = open_snapshot(path)
    info = FunctionInfo.of(snapshot.manifest)
    check_schemas(info)
    code.load_code(snapshot, trusted=frozenset(config.trusted), code_dir=config.code_dir)
    return Opened(snapshot, info, choose(snapshot, config.trusted, config.device))


def shared_modules(flavour: Flavour, functions: Iterable[Opened]) -> list[str]:
    """The modules for the base zygote of ``flavour``, which these functions share.

    Model libraries are taken from the skeletons, whose names have passed the allow-list.
    """
    modules = [*COMMON_MODULES, *(TORCH_MODULES if flavour is Flavour.TORCH else ())]
    for each in functions:
        skeleton = each.snapshot.skeleton
        if each.form.compiled is not None:
            modules.append(LIBTORCH_MODULE)
            skeleton = compiled.prune(each.form.compiled, each.snapshot)
        own = names.own_modules(each.snapshot.manifest.code.files)
        named = {name.partition(":")[0] for _kind, name in skeleton.names}
        modules += sorted(named - own - {"builtins", ""})
        if any(node["t"] == "tokenizer" for node in skeleton.nodes):
            modules.append("tokenizers")
    return list(dict.fromkeys(modules))
