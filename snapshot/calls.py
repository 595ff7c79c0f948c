"""How the modules of an object are called on the probe: what their compiled forms will have to take.

Knows nothing of export, libraries or files.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from zerowake.snapshot.arrays import is_array
from zerowake.snapshot.errors import CannotCompile

_PLAIN = (bool, int, float, str, type(None))


@dataclass(slots=True)
class Calls:
    """A module, where it stands on the object, and its calls: arguments by parameter, defaults too.

    seen: those on the probe. tried: in batches that nobody has asked for, while not ``is_probe``.
    """

    path: str
    module: torch.nn.Module
    signature: inspect.Signature
    seen: list[dict[str, Any]] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)
    is_probe: bool = True

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        """Names of the array arguments, and the other arguments' values, the same in all calls.

        Raises CannotCompile where calls differ in more than arrays, or there are none.
        """
        if not self.seen:
            raise CannotCompile(f"self.{self.path} is not called on the probe")
        given = [dict(self._named(call)) for call in self.seen]
        names = [name for name, value in given[0].items() if is_array(value)]
        fixed = {name: value for name, value in given[0].items() if name not in names}
        for name, value in fixed.items():
            if not isinstance(value, _PLAIN):
                raise CannotCompile(
                    f"self.{self.path}({name}=...) is a {type(value).__qualname__}; wanted arrays "
                    "or plain values"
                )
        for call in given:
            if any(is_array(call[n]) != (n in names) for n in call) or any(
                call[n] != v for n, v in fixed.items()
            ):
                raise CannotCompile(f"self.{self.path} is called in different ways on the probe")
        return names, fixed

    def tensors(self, names: list[str]) -> list[list[torch.Tensor]]:
        """The array arguments ``names`` of each call, contiguous.

        Copies, for predict ran in inference mode, and export refuses tensors that were made there.
        """
        return [_tensors(call, names) for call in self.seen]

    def tried_tensors(self, names: list[str], fixed: Mapping[str, Any]) -> list[list[torch.Tensor]]:
        """The same of the calls that were tried and have the other arguments' values ``fixed``."""
        found = []
        for call in self.tried:
            given = dict(self._named(call))
            if all(is_array(given[name]) for name in names) and all(
                not is_array(given[name]) and given[name] == value for name, value in fixed.items()
            ):
                found.append(_tensors(call, names))
        return found

    def _named(self, call: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Arguments by name. Raises CannotCompile for others in ``*args`` and ``**kwargs``."""
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                stars = "*"
            elif parameter.kind is parameter.VAR_KEYWORD:
                stars = "**"
            else:
                yield parameter.name, call[parameter.name]
                continue
            if call.get(parameter.name):
                raise CannotCompile(f"self.{self.path} is called with {stars}{parameter.name}")


def _tensors(call: Mapping[str, Any], names: list[str]) -> list[torch.Tensor]:
    return [torch.as_tensor(call[name]).detach().clone().contiguous() for name in names]


class _Recorder:
    """What stands in place of a module: it can be called, and nothing else."""

    __slots__ = ("_calls",)

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._calls.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        calls = self._calls
        found = calls.module(*args, **kwargs)
        (calls.seen if calls.is_probe else calls.tried).append(dict(bound.arguments))
        return found

    def __getattr__(self, name: str) -> Any:
        raise CannotCompile(
            f"predict reads self.{self._calls.path}.{name}; a compiled module is only called"
        )


def recorded(target: Any) -> list[Calls]:
    """Put a recorder in place of each module that stands on ``target``; the calls that they record.

    Raises CannotCompile when there is none.
    """
    found = [
        Calls(name, value, inspect.signature(value.forward))
        for name, value in getattr(target, "__dict__", {}).items()
        if isinstance(value, torch.nn.Module)
    ]
    if not found:
        raise CannotCompile("the object has no attribute that is a module")
    for calls in found:
        setattr(target, calls.path, _Recorder(calls))
    return found
