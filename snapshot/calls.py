"""How the modules of an object are called on the probe: what their compiled forms will have to take.

Knows nothing of export, libraries or files.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from zerowake.snapshot.arrays import Kind, as_tensor, is_array, kind_of
from zerowake.snapshot.errors import CannotCompile

_PLAIN = (bool, int, float, str, type(None))


@dataclass(slots=True)
class Calls:
    """A module, where it stands on the object, and its calls: arguments by parameter, defaults too.

    seen: on the probe; tried: in batches that nobody has asked for, once ``is_probe`` is false.
    during: who calls now, "wake" or "predict". other_use: who has done what else with it, which a
    compiled form has no answer to.
    """

    path: str
    module: torch.nn.Module
    signature: inspect.Signature
    seen: list[dict[str, Any]] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)
    is_probe: bool = True
    during: str = "predict"
    other_use: str | None = None

    def arguments(self) -> tuple[list[str], dict[str, Any]]:
        """Names of the array arguments, and the other arguments' values, the same in all calls.

        Raises CannotCompile where calls differ in more than arrays or ranks, there are none, or the
        module is not only called.
        """
        if self.other_use is not None:
            raise CannotCompile(f"{self.other_use}; a compiled module is only called")
        if (
            type(self.module).__name__ == "OptimizedModule"
        ):  # torch's, by name: importing it takes 1 s
            raise CannotCompile(f"self.{self.path} is compiled by the function itself")
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

    def kind(self, names: list[str]) -> Kind:
        """Which kind of arrays it was given on the probe."""
        return kind_of(call[name] for call in self.seen for name in names)

    def tensors(self, names: list[str]) -> list[list[torch.Tensor]]:
        """The array arguments ``names`` of each call on the probe, contiguous.

        Raises CannotCompile where their ranks differ.
        """
        found = [_tensors(call, names) for call in self.seen]
        if len({tuple(tensor.ndim for tensor in each) for each in found}) > 1:
            raise CannotCompile(f"self.{self.path} is called with different ranks on the probe")
        return found

    def unasked(self, names: list[str], fixed: dict[str, Any]) -> list[list[torch.Tensor]]:
        """The same of the other calls, those left out that differ in more than arrays."""
        return [
            _tensors(call, names)
            for call in self.tried
            if all(is_array(call[name]) for name in names)
            and all(not is_array(call[n]) and call[n] == value for n, value in fixed.items())
        ]

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


def _tensors(call: dict[str, Any], names: list[str]) -> list[torch.Tensor]:
    # Copies, for predict ran in inference mode, and export refuses tensors that were made there.
    return [as_tensor(call[name]).detach().clone().contiguous() for name in names]


class _Recorder:
    """What stands in place of a module: its calls are recorded, any other use is noted."""

    __slots__ = ("_calls",)

    def __init__(self, calls: Calls) -> None:
        object.__setattr__(self, "_calls", calls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._calls.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        found = self._calls.module(*args, **kwargs)
        (self._calls.seen if self._calls.is_probe else self._calls.tried).append(
            dict(bound.arguments)
        )
        return found

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # isinstance asks for it; a look by type() cannot be seen
        return type(self._used(f"looks at the class of self.{self._calls.path}"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._used(f"reads self.{self._calls.path}.{name}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._used(f"sets self.{self._calls.path}.{name}"), name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._used(f"reads self.{self._calls.path}[{key!r}]")[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._used(f"iterates over self.{self._calls.path}"))

    def __len__(self) -> int:
        return len(self._used(f"takes the length of self.{self._calls.path}"))

    def __bool__(self) -> bool:  # without it len is asked
        return bool(self._calls.module)

    def __repr__(self) -> str:
        return repr(self._used(f"prints self.{self._calls.path}"))

    def _used(self, how: str) -> Any:
        self._calls.other_use = self._calls.other_use or f"{self._calls.during} {how}"
        return self._calls.module


def recorded(target: Any, used: Mapping[str, str] = MappingProxyType({})) -> list[Calls]:
    """Put a recorder in place of each module that stands on ``target``; the calls that they record.

    used: ``other_use`` of those, by path, that stay as they are. Raises CannotCompile when there is
    no module.
    """
    found: dict[int, tuple[Calls, _Recorder]] = {}
    for name, value in list(getattr(target, "__dict__", {}).items()):
        if isinstance(value, torch.nn.Module):
            if id(value) not in found:  # it may stand under a second name
                calls = Calls(name, value, inspect.signature(value.forward))
                calls.other_use = used.get(name)
                found[id(value)] = calls, _Recorder(calls)
            calls, recorder = found[id(value)]
            if calls.other_use is None:
                setattr(target, name, recorder)
    if not found:
        raise CannotCompile("the object has no attribute that is a module")
    return [calls for calls, _ in found.values()]
