"""From what the command line names to what the pool serves: a snapshot, and the form that it runs in."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.forms import Chosen, choose, named_modules
from zerowake.runtime.gateway.base import Flavour
from zerowake.runtime.gateway.inputs import check_schemas
from zerowake.runtime.info import FunctionInfo, Kind
from zerowake.runtime.target import is_target
from zerowake.snapshot import code, names
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.skeleton import Skeleton
from zerowake.snapshot.store import open_snapshot

if TYPE_CHECKING:
    from zerowake.snapshot.form import Form

# What instances import; libraries that skeletons name come on top.
COMMON_MODULES = ("orjson",)
TORCH_MODULES = ("torch", "zerowake.snapshot.weights", "zerowake.snapshot.staging")
LIBTORCH_MODULE = "zerowake.snapshot.libtorch"


class Opened(NamedTuple):
    """A snapshot whose structure, code and description were checked, and its form here.

    Its large tables (skeleton, tensors, a form's constants) are left out, for hundreds of functions
    may be served. modules: what its base zygote shares with it. digests: its own and its form's.
    """

    snapshot: Snapshot
    info: FunctionInfo
    form: Chosen
    modules: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    def named(self, name: str) -> "Opened":
        """The same, to be served under another name."""
        manifest = self.snapshot.manifest._replace(name=name)
        return self._replace(
            snapshot=self.snapshot._replace(manifest=manifest), info=self.info._replace(name=name)
        )

    @property
    def flavour(self) -> Flavour:
        return Flavour.TORCH if self.form.needs_torch else Flavour.LIGHT


def open_target(
    text: str,
    config: ServeConfig,
    *,
    reload: bool = False,
    schemas: bool = True,
    url: str = "",
) -> Opened:
    """A snapshot, or the snapshot of a source as it is now. Raises TargetError, SnapshotError.

    reload: the source is being worked on, so nobody waits for a compiler. schemas: look at those
    as well; who does not want that has ``check_schemas`` do it later. url: where the snapshot at
    ``text`` was fetched from, which is what a remedy names.
    """
    path = Path(text)
    if is_target(text):
        from zerowake.runtime.cache import cache_directory, ensure_snapshot

        path = ensure_snapshot(text, cache_directory(os.environ), compiled=not reload)
    snapshot = open_snapshot(path)
    info = FunctionInfo.of(snapshot.manifest)
    if config.alone:
        # The platform has more containers where a model needs them; requests may wait for each other.
        most = info.settings.instances[1] if info.kind is Kind.HTTP else 1
        info = info._replace(settings=replace(info.settings, instances=(1, most)))
    if schemas:
        check_schemas(info)
    code.load_code(snapshot, trusted=frozenset(config.trusted), code_dir=config.code_dir)
    chosen = choose(snapshot, config.trusted, config.device)
    if url:
        reason = chosen.reason.replace(f"compile {snapshot.path}", f"compile {url}")
        chosen = chosen._replace(reason=reason)
    form = chosen.compiled
    return Opened(
        snapshot=snapshot._replace(
            manifest=snapshot.manifest._replace(tensors=()),
            skeleton=Skeleton(None, [], [], []),
        ),
        info=info,
        form=chosen._replace(compiled=None),
        modules=tuple(_modules(snapshot, form)),
        digests=(snapshot.digest, *([form.digest] if form is not None else [])),
    )


def shared_modules(flavour: Flavour, functions: Iterable[Opened]) -> list[str]:
    """The modules for the base zygote of ``flavour``, which these functions share."""
    modules = [*COMMON_MODULES, *(TORCH_MODULES if flavour is Flavour.TORCH else ())]
    for each in functions:
        modules += each.modules
    return list(dict.fromkeys(modules))


def _modules(snapshot: Snapshot, form: "Form | None") -> list[str]:
    """What an instance imports for its object and a base may: nothing of the author's."""
    own = names.own_modules(snapshot.manifest.code.files)
    libraries = sorted(named_modules(snapshot, form) - own)
    if form is not None and form.caches:
        from zerowake.snapshot.jit import INDUCTOR

        libraries.append(INDUCTOR)
    if form is not None and form.modules:
        libraries.insert(0, LIBTORCH_MODULE)
    return libraries
