"""Modules of a compiled form: they answer without their Python, and without torch.

All that a call brings is checked before the library sees it, for an error in there ends the process.
A call of a shape that the library does not take is answered by the original module.
"""

import logging
import mmap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from zerowake.snapshot import conditions, output
from zerowake.snapshot.arrays import (
    Kind,
    WrongPrecision,
    WrongRank,
    give,
    is_array,
    kind_of,
    span,
    take,
)
from zerowake.snapshot.binding import weights
from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.form import CONSTANTS, Form, Input, ModuleForm
from zerowake.snapshot.libtorch import Library, libtorch
from zerowake.snapshot.opened import Snapshot
from zerowake.snapshot.strided import Array

log = logging.getLogger("zerowake.compiled")

Module = Callable[..., Any]


class NotTaken(ValueError):
    """A call that the library does not take; the original module may."""


class CompiledModule:
    """What ``predict`` finds in place of a module: it can be called, with its signature.

    original: makes the module itself, for calls that the library does not take; None where those
    are to fail. ``eager_calls``: how many it has answered, or failed to.
    """

    __slots__ = ("_form", "_library", "_original", "_restored", "eager_calls")
    _form: ModuleForm
    _library: Library
    _original: Callable[[], Module] | None
    _restored: Module | None
    eager_calls: int

    def __init__(
        self, form: ModuleForm, library: Library, original: Callable[[], Module] | None
    ) -> None:
        for name, value in zip(self.__slots__, (form, library, original, None, 0), strict=True):
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes tensors, numpy arrays, DLPack's, buffers or nested lists; returns what it was given.

        ``Kind`` says more. Raises TypeError, ValueError or BufferError naming the argument, IndexError
        for a row that no table has, RuntimeError with the library's words; and what the original
        raises where that answers.
        """
        form = self._form
        bound = form.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        arrays = self._taken(given)
        if isinstance(arrays, NotTaken):
            return self._ask_original(arrays)(*args, **kwargs)
        results = self._library.run(arrays)
        if form.lookups:
            for line, wrong in zip(form.lookups, give(results[-1], Kind.LIST), strict=True):
                if wrong:
                    raise IndexError(f"{form.path}: index out of range in {line}")
        kind = kind_of(given[each.name] for each in form.inputs)
        return output.put_together(form.output, lambda place: give(results[place], kind))

    def __getattr__(self, name: str) -> Any:
        raise self._only_called(name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise self._only_called(name)

    def _only_called(self, name: str) -> AttributeError:
        if name.startswith("_"):  # what Python asks for, ``copy`` of an object without slots, say
            return AttributeError(name)
        return AttributeError(
            f"the compiled form of a module can only be called; {self._form.path}.{name} needs the "
            "module itself: read it in load and keep it on self, or freeze with --no-compile"
        )

    def _taken(self, given: Mapping[str, Any]) -> list[Array] | NotTaken:
        """The inputs as the library takes them, or why it does not.

        That is returned: were it raised, what the original raises would come "during handling" of it.
        """
        try:
            self._check_others(given)
            arrays = [self._take(each, given[each.name]) for each in self._form.inputs]
            self._check(arrays)
        except NotTaken as misfit:
            return misfit
        return arrays

    def _ask_original(self, misfit: NotTaken) -> Module:
        """The module itself, restored at the first such call, which then takes seconds."""
        if self._original is None:
            raise misfit
        object.__setattr__(self, "eager_calls", self.eager_calls + 1)
        if self.eager_calls == 1:
            log.warning(
                "%s. The original module is asked instead, which is slower and loads torch; if there are more such calls, add an example like this one and freeze again, or "
                "refuse them with InvalidInput where they make no sense",
                misfit,
            )
        if self._restored is None:
            try:
                object.__setattr__(self, "_restored", self._original())
            except Exception as error:
                raise NotTaken(
                    f"{misfit}; the original module cannot be restored to answer instead ({error}): "
                    "add an example like this one and freeze again"
                ) from error
        assert self._restored is not None
        return self._restored

    def _check_others(self, given: Mapping[str, Any]) -> None:
        """Arguments that are no inputs must be what they were when it was compiled."""
        form = self._form
        inputs = {each.name for each in form.inputs}
        for name, value in given.items():
            if name in form.fixed:
                wanted = form.fixed[name]
                if value is not wanted and (is_array(value) or value != wanted):
                    raise NotTaken(
                        f"{form.path}({name}={value!r:.80}): it was compiled for {name}={wanted!r}"
                    )
            elif name not in inputs and value:  # *args, **kwargs
                raise NotTaken(f"{form.path}: it was compiled without {name}")

    def _take(self, wanted: Input, value: Any) -> Array:
        try:
            return take(value, wanted.dtype, len(wanted.shape))
        except (WrongPrecision, WrongRank) as error:
            raise NotTaken(f"{self._form.path}: {wanted.name}: {error}") from None
        except (TypeError, ValueError, BufferError) as error:
            raise type(error)(f"{self._form.path}: {wanted.name}: {error}") from None

    def _check(self, arrays: Sequence[Array]) -> None:
        sizes: dict[str, int] = {}
        for wanted, array in zip(self._form.inputs, arrays, strict=True):
            for place, (size, found) in enumerate(zip(wanted.shape, array.shape, strict=True)):
                if isinstance(size, str):
                    least, most = self._form.ranges[size]
                    fits = found >= least and (most is None or found <= most)
                    said = f"{least} to {'any' if most is None else most}"
                    if fits:
                        said = f"{sizes.setdefault(size, found)}, as in another argument"
                        fits = sizes[size] == found
                else:
                    fits, said = found == size, f"{size}"
                if not fits:
                    raise NotTaken(
                        f"{self._form.path}: {wanted.name} has {found} entries in dimension {place}; "
                        f"the compiled form takes {said}"
                    )
            if wanted.below and array.count:
                low, high = span(array)
                if low < 0 or high >= wanted.below:
                    raise IndexError(
                        f"{self._form.path}: {wanted.name} holds values from {low} to {high}; "
                        f"wanted 0 to {wanted.below - 1}"
                    )
        for guard, is_met in self._form.guards.items():
            if not is_met(sizes):
                shapes = [(each.name, each.shape) for each in self._form.inputs]
                found_sizes = ", ".join(f"{name}={size}" for name, size in sizes.items())
                said = f"sizes {found_sizes}; the compiled form takes those with {guard}"
                raise NotTaken(f"{self._form.path}: {conditions.in_words(said, shapes)}")


def load(
    form: Form,
    snapshot: Snapshot,
    mapped: Sequence[mmap.mmap],
    original: Callable[[str], Module] | None = None,
) -> dict[str, CompiledModule]:
    """The form's modules by path, bound to the weights where they are mapped.

    original: makes the module itself at a path, for calls that its library does not take.
    Raises UnusableForm when a file is not the one that the form lists, or a weight is not what the
    library wants.
    """
    made = {}
    torch = libtorch()
    stored = form.listed(CONSTANTS).mapped() if CONSTANTS in form.files else None
    for each in form.modules:
        with form.listed(each.library).loadable() as path:
            library = Library(path, torch, each.library)
        if library.inputs != len(each.inputs):
            raise UnusableForm(
                f"{each.library} takes {library.inputs} inputs, not {len(each.inputs)}"
            )
        if any(not 0 <= place < library.outputs for place in output.places(each.output)):
            raise UnusableForm(f"{each.library} has {library.outputs} outputs, not {each.output}")
        library.bind(weights(each, snapshot, mapped, stored, library))
        made[each.path] = CompiledModule(
            each, library, partial(original, each.path) if original is not None else None
        )
    return made
