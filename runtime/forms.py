"""Which form of a snapshot runs here: compiled, with or without torch, or the author's own objects.

Gateway and instances ask the same question and get the same answer. Imports no torch.
"""

import contextlib
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from zerowake.runtime.config import Device, shows_gpu
from zerowake.snapshot.errors import DamagedForm, SnapshotError, UnusableForm
from zerowake.snapshot.opened import Snapshot

if TYPE_CHECKING:
    from zerowake.snapshot.form import Form


_FOR_CPU = "compiled forms are for the CPU"


class FormName(StrEnum):
    PLAIN = "plain"  # no tensors, no torch
    TORCH_FREE = "torch-free"
    COMPILED = "compiled"
    EAGER = "eager"


class Chosen(NamedTuple):
    """compiled: None where the eager form runs, or a form of no modules but caches; ``reason`` says why.

    damaged: there is a form, and that is what is wrong with it.
    """

    name: FormName
    compiled: "Form | None" = None
    reason: str = ""
    damaged: bool = False

    @property
    def needs_torch(self) -> bool:
        return self.name in (FormName.COMPILED, FormName.EAGER)


def named_modules(snapshot: Snapshot, form: "Form | None") -> set[str]:
    """The modules that an object of the snapshot is made of in this form, the author's own among them.

    From the skeleton, so all others are on the allow-list. form: None for the eager one.
    """
    skeleton = snapshot.skeleton
    if form is not None:
        from zerowake.snapshot.form import prune

        skeleton = prune(form, snapshot)
    named = {name.partition(":")[0] for _kind, name in skeleton.names}
    if any(node["t"] == "tokenizer" for node in skeleton.nodes):
        named.add("tokenizers")
    return named - {"builtins", ""}


def compile_apart(snapshot: Snapshot) -> None:
    """Where caches lie there and are not used, what the function compiles goes to a folder of its own.

    For the life of this process: elsewhere Inductor would find what anybody may have put there.
    """
    from zerowake.snapshot import form, jit

    with contextlib.suppress(UnusableForm):  # without torch
        if form.keeps_caches(snapshot):
            jit.apart()


def choose(
    snapshot: Snapshot, trusted: Iterable[str], device: Device, *, loads: bool = False
) -> Chosen:
    """The best form that may run here.

    trusted: digests that the operator vouches for. loads: as ``find_form`` has it.
    """
    if not snapshot.skeleton.needs_torch:
        return Chosen(FormName.PLAIN)
    from zerowake.snapshot import form as forms  # 6 ms that a function without tensors saves

    on_gpu = device == "cuda" or (device == "auto" and shows_gpu())
    try:
        if on_gpu and not forms.keeps_caches(snapshot):
            raise UnusableForm(_FOR_CPU)
        form = forms.find_form(snapshot, frozenset(trusted), loads=loads)
    except (UnusableForm, SnapshotError, OSError) as error:
        damaged = isinstance(error, DamagedForm)
        return Chosen(FormName.EAGER, reason=str(error), damaged=damaged)
    if on_gpu or not form.modules:
        why = _FOR_CPU if on_gpu else "no module of it is compiled"
        why += f"; {len(form.caches)} files of what the function compiles itself are used"
        return Chosen(FormName.EAGER, form._replace(modules=()), why)
    return Chosen(FormName.TORCH_FREE if form.torch_free else FormName.COMPILED, form)
