"""Restoring: a snapshot's weights mapped, and its objects rebuilt around them.

Does not know how ``load`` once made the object, and never runs it. Starts no threads, unless for
an accelerator: ``staging`` copies with several.
"""

import contextlib
import gc
import mmap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerowake.snapshot import code as code_files
from zerowake.snapshot import names, tokenizer
from zerowake.snapshot.code import CodeFiles, in_words
from zerowake.snapshot.errors import SnapshotError, WakeFailed
from zerowake.snapshot.mapping import map_file, populate
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.rebuild import Builder, Make, import_names
from zerowake.snapshot.skeleton import prune
from zerowake.snapshot.store import open_snapshot, read_file

if TYPE_CHECKING:
    from zerowake.snapshot.compiled import CompiledModule
    from zerowake.snapshot.form import Form
    from zerowake.snapshot.weights import Weights


@dataclass(frozen=True, slots=True)
class Restored:
    """``report``: milliseconds by phase: map, import, build, with a compiled form compiled, with its
    caches caches, and with tensors bind (of which on a device context, ring, copy). ``mappings``: the weights files, one each;
    on the CPU the object's tensors lie in them. ``compiled``: its modules that are."""

    object: Any
    report: dict[str, float]
    mappings: list[mmap.mmap] = field(repr=False)
    compiled: "Mapping[str, CompiledModule]" = field(default_factory=dict, repr=False)

    def eager_calls(self) -> int:
        """How many calls of compiled modules the original ones have been asked."""
        return sum(module.eager_calls for module in self.compiled.values())

    def populate(self) -> None:
        """Fill the page tables, so that the first run takes no faults on the weights."""
        for mapped in self.mappings:
            populate(mapped)


def restore(
    snapshot: Snapshot,
    code: CodeFiles,
    *,
    device: str = "cpu",
    form: "Form | None" = None,
    fall_back: bool = True,
) -> Restored:
    """The object that was frozen, as ``load`` left it; ``wake_up`` is the caller's next step.

    ``code`` comes from ``load_code``. ``form``: a compiled form, whose modules stand in place of the
    object's own; their classes are not imported, and torch only if something else needs it. What the
    function itself compiles is looked for in the form's caches from then on, in all of this process.
    ``fall_back``: calls of a shape that the form does not take are answered by the module itself,
    restored when it is first needed.

    On the CPU tensors are views of the weights files, mapped
    private and writable; only odd-sized ones are copied. On another device ("cuda", "cuda:N") all
    weights are copied there once, and tensors are views of that copy.

    Raises DamagedSnapshot, ForbiddenClass, UnusableForm, SnapshotError when a library is missing or does not fit
    the skeleton, and DeviceError; what the import of the author's code raises goes through.
    """
    report: dict[str, float] = {}
    with _phase(report, "map"):
        segments = snapshot.manifest.segments
        mappings = [map_file(snapshot.path / s.file, s.nbytes) for s in segments]
    skeleton, more = snapshot.skeleton, dict[str, Make]()
    modules: Mapping[str, CompiledModule] = {}
    if form is not None and (caches := form.caches):
        with _phase(report, "caches"):
            from zerowake.snapshot import jit

            jit.use(caches, form.digest)
    if form is not None and form.modules:
        from zerowake.snapshot import compiled
        from zerowake.snapshot import form as forms

        with _phase(report, "compiled"):
            # By its path: an opened snapshot's skeleton would stay in memory.
            original = partial(restore_module, snapshot.path, snapshot.digest, code, mappings)
            modules = compiled.load(form, snapshot, mappings, original if fall_back else None)
            skeleton = forms.prune(form, snapshot)
            more["compiled"] = lambda builder, node, shell: modules[node["v"]]
    with _phase(report, "import"):
        code_files.install(code)
        own = names.own_modules(code.files)
        classes = import_names(skeleton, own)
    if skeleton.needs_torch:
        with _phase(report, "bind"):
            weights = _weights(snapshot, mappings, device)
            more |= weights.makers()
        report |= weights.phases_ms
    with _phase(report, "build"), _no_collection():
        builder = Builder(skeleton, classes, lambda path: read_file(snapshot, path), more)
        target = builder.build()
        if skeleton.needs_torch:
            from zerowake.snapshot.eager import accept_arrays

            accept_arrays(target)
    return Restored(target, report, mappings, modules)


def restore_module(
    path: Path, digest: str, code: CodeFiles, mappings: list[mmap.mmap], attribute: str
) -> Callable[..., Any]:
    """One module of the object of the snapshot at ``path``, on the CPU, to be called.

    It takes arrays of every kind and runs in inference mode, also where torch was not yet there
    when ``predict`` was called. ``mappings``: of the weights files. Raises as ``restore`` does.
    """
    from zerowake.snapshot.form import module_node

    snapshot = open_snapshot(path, checked=digest)
    if snapshot.digest != digest:
        raise SnapshotError(f"{path} holds another snapshot by now")
    root = [module_node(snapshot, attribute)]
    skeleton = prune(snapshot.skeleton._replace(root=root), {})
    classes = import_names(skeleton, names.own_modules(code.files))
    makers = _weights(snapshot, mappings, "cpu").makers()
    import torch

    from zerowake.snapshot.eager import accept_arrays_at

    module = Builder(skeleton, classes, lambda path: read_file(snapshot, path), makers).build()
    accept_arrays_at(module)

    def answer(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return module(*args, **kwargs)

    return answer


def keep_tokenizers(snapshot: Snapshot) -> None:
    """Have forks of this process find the snapshot's tokenizers made (``tokenizer.keep``)."""
    for node in snapshot.skeleton.nodes:
        if node["t"] == "tokenizer":
            paths = node["asset"], *node.get("files", [])
            nbytes = sum(snapshot.manifest.files[path].nbytes for path in paths)
            if nbytes <= tokenizer.MOST_KEPT_NBYTES:  # else not even read: forks wait meanwhile
                text, *files = (read_file(snapshot, path) for path in paths)
                tokenizer.keep(text, files)


def wake_up(target: Any, name: str) -> None:
    """Call the object's ``wake``, if it has one. Raises WakeFailed around whatever that raises."""
    if not callable(getattr(target, "wake", None)):
        return
    try:
        target.wake()
    except BaseException as error:  # SystemExit must not end a process that others share
        if isinstance(error, KeyboardInterrupt):
            raise
        raise WakeFailed(f"wake() of {name!r} failed: {in_words(error)}") from error


def _weights(snapshot: Snapshot, mappings: list[mmap.mmap], device: str) -> "Weights":
    from zerowake.snapshot.weights import Weights, WeightsOnDevice  # imports torch

    if device == "cpu":
        return Weights(snapshot.manifest, mappings)
    return WeightsOnDevice(snapshot.manifest, mappings, device)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of new objects, none of them garbage: the collector would walk all of torch."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _phase(report: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    report[name] = (time.perf_counter() - start) * 1000
