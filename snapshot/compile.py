"""Compiling the modules of a snapshot: torch.export, then AOTInductor, weights left outside.

Slow (tens of seconds, a C++ compiler) and it imports torch._inductor, so it runs in a process of
its own. What comes out is read by ``compiled``, which needs none of this.
"""

import inspect
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zerowake.snapshot.arrays import is_array
from zerowake.snapshot.compiled import CONSTANTS
from zerowake.snapshot.errors import CannotCompile

_SAME_VALUES = frozenset(
    (
        torch.ops.aten.to.dtype,
        torch.ops.aten._to_copy.default,
        torch.ops.aten.view.default,
        torch.ops.aten.reshape.default,
        torch.ops.aten.unsqueeze.default,
        torch.ops.aten.contiguous.default,
        torch.ops.aten.clone.default,
    )
)
PLAIN = (bool, int, float, str, type(None))


@dataclass(slots=True)
class Calls:
    """A module on the probe: how it was called. It can be called, and nothing else."""

    path: str
    module: torch.nn.Module
    signature: inspect.Signature
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        self.seen.append(dict(bound.arguments))
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        raise CannotCompile(
            f"predict reads self.{self.path}.{name}; a compiled module is only called"
        )


def recorded(target: Any) -> list[Calls]:
    """Put a recorder in place of each module that stands on ``target``, and return them.

    Raises CannotCompile when there is none.
    """
    found = []
    for name, value in vars(target).items():
        if isinstance(value, torch.nn.Module):
            found.append(Calls(name, value, inspect.signature(value.forward)))
    if not found:
        raise CannotCompile("the object has no attribute that is a module")
    for calls in found:
        setattr(target, calls.path, calls)
    return found


def compile_module(calls: Calls, out: Path, dtype: str | None) -> dict[str, Any]:
    """Compile one module into ``out``; returns its entry in form.json.

    Raises CannotCompile with what stands against it.
    """
    if not calls.seen:
        raise CannotCompile(f"self.{calls.path} is not called on the probe")
    names, fixed = _arguments(calls)
    examples = [_tensors(call, names) for call in calls.seen]
    module = calls.module
    if module.training:
        raise CannotCompile(f"self.{calls.path} is in training mode; call eval() in load")
    if dtype is not None:
        module = module.to(getattr(torch, dtype))
    flat = _Flat(module, names, fixed)
    example = max(examples, key=lambda tensors: sum(t.numel() for t in tensors))
    flat(*example)  # finds the output's structure
    try:
        program = torch.export.export(
            flat, tuple(example), dynamic_shapes=(_dynamic(examples),), strict=False
        )
    except Exception as error:
        raise CannotCompile(f"self.{calls.path} does not export: {_first_lines(error)}") from error
    signature = program.graph_signature
    if changed := [
        *signature.buffers_to_mutate.values(),
        *signature.user_inputs_to_mutate.values(),
    ]:
        raise CannotCompile(f"the forward of self.{calls.path} writes into {changed[0]}")
    inputs, ranges = _inputs(calls, names, program, examples)
    library, stored = _build(calls.path, program, out, flat.module, dtype)
    parameters = [
        (p.name, p.kind.name, [] if p.default is p.empty else [p.default])
        for p in calls.signature.parameters.values()
    ]
    return {
        "path": calls.path,
        "library": library,
        "signature": parameters,
        "fixed": fixed,
        "inputs": inputs,
        "ranges": ranges,
        "output": flat.tree,
        "stored": stored,
    }


class _Flat(torch.nn.Module):
    """A module as a function of its array arguments, its results a flat tuple."""

    def __init__(self, module: torch.nn.Module, names: list[str], fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.tree: Any = None
        self._names, self._fixed = names, dict(fixed)
        self._parameter = next(
            (p for p in module.parameters() if p.is_floating_point()), torch.zeros(())
        ).dtype

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = [t.to(self._parameter) if t.is_floating_point() else t for t in tensors]
        result = self.module(**dict(zip(self._names, given, strict=True)), **self._fixed)
        results: list[torch.Tensor] = []
        self.tree = _tree(result, results)
        return tuple(results)


def _tree(value: Any, results: list[torch.Tensor]) -> Any:
    """``value``'s structure as JSON; its tensors go to ``results``, dense and at least float32."""
    if isinstance(value, torch.Tensor):
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        results.append(value.contiguous())
        return len(results) - 1
    if value is None:
        return None
    if isinstance(value, dict):  # a ModelOutput of transformers is one too
        kind = "dict" if type(value) is dict else "output"
        return {"t": kind, "v": {str(k): _tree(v, results) for k, v in value.items()}}
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return {"t": type(value).__name__, "v": [_tree(v, results) for v in value]}
    raise CannotCompile(
        f"a module returns a {type(value).__qualname__}; wanted tensors in containers"
    )


def _arguments(calls: Calls) -> tuple[list[str], dict[str, Any]]:
    """Names of the array arguments, and the other arguments' values, the same in all calls."""
    kinds = {p.kind for p in calls.signature.parameters.values()}
    first = calls.seen[0]
    if inspect.Parameter.VAR_POSITIONAL in kinds and first.get(_variadic(calls)):
        raise CannotCompile(f"self.{calls.path} is called with *args")
    given = [_by_name(calls, call) for call in calls.seen]
    names = [name for name, value in given[0].items() if is_array(value)]
    fixed = {name: value for name, value in given[0].items() if name not in names}
    for name, value in fixed.items():
        if not isinstance(value, PLAIN):
            raise CannotCompile(
                f"self.{calls.path}({name}=...) is a {type(value).__qualname__}; wanted arrays or "
                "plain values"
            )
    for call in given:
        if any(is_array(call[n]) != (n in names) for n in call) or any(
            call[n] != v for n, v in fixed.items()
        ):
            raise CannotCompile(f"self.{calls.path} is called in different ways on the probe")
    return names, fixed


def _variadic(calls: Calls) -> str:
    return next(p.name for p in calls.signature.parameters.values() if p.kind is p.VAR_POSITIONAL)


def _by_name(calls: Calls, call: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; empty ``*args`` and ``**kwargs`` left out, given keywords among them."""
    found: dict[str, Any] = {}
    for parameter in calls.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            if call.get(parameter.name):
                raise CannotCompile(f"self.{calls.path} is called with **{parameter.name}")
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[parameter.name] = call[parameter.name]
    return found


def _tensors(call: Mapping[str, Any], names: list[str]) -> list[torch.Tensor]:
    return [torch.as_tensor(call[name]).detach().contiguous() for name in names]


def _dynamic(examples: Sequence[list[torch.Tensor]]) -> tuple[dict[int, Any], ...]:
    """Sizes that differ between calls may vary; so may all others but those of 1, if they can."""
    largest = [
        [max(sizes) for sizes in zip(*(t.shape for t in ts), strict=True)]
        for ts in zip(*examples, strict=True)
    ]
    auto = torch.export.Dim.AUTO
    return tuple({place: auto for place, size in enumerate(sizes) if size > 1} for sizes in largest)


def _inputs(
    calls: Calls, names: list[str], program: Any, examples: Sequence[list[torch.Tensor]]
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int | None]]]:
    """The inputs with their sizes, and the range of each size that varies."""
    wanted = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    inputs, ranges = [], {}
    tables = _tables(program)
    for place, (name, node) in enumerate(zip(names, nodes, strict=True)):
        tensor = node.meta["val"]
        shape: list[int | str] = []
        for dim, size in enumerate(tensor.shape):
            if not isinstance(size, torch.SymInt):
                shape.append(int(size))
                continue
            expression = size.node.expr
            if not expression.is_Symbol:
                raise CannotCompile(
                    f"self.{calls.path}: {name} must have {expression} entries in dimension {dim}"
                )
            limits = program.range_constraints[expression]
            least, most = int(limits.lower), limits.upper
            # 1 is special to export (broadcasting); the probe shows whether it is right.
            proved = min(int(tensors[place].shape[dim]) for tensors in examples)
            ranges[str(expression)] = (
                min(least, max(proved, 1)),
                int(most) if str(most).isdigit() else None,
            )
            shape.append(str(expression))
        dtype = str(tensor.dtype).removeprefix("torch.")
        inputs.append({"name": name, "dtype": dtype, "shape": shape, "below": tables.get(node, 0)})
    return inputs, ranges


def _tables(program: Any) -> dict[Any, int]:
    """Placeholders whose values are row numbers of an embedding, with its number of rows."""
    found: dict[Any, int] = {}
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.embedding.default:
            continue
        source = node.args[1]
        while source.op == "call_function" and source.target in _SAME_VALUES:
            source = source.args[0]
        if source.op == "placeholder":
            rows = int(node.args[0].meta["val"].shape[0])
            found[source] = min(rows, found.get(source, rows))
    return found


def _build(
    path: str, program: Any, out: Path, module: torch.nn.Module, dtype: str | None
) -> tuple[str, dict[str, Any]]:
    """The compiled library's name in ``out``, and the constants stored beside it."""
    config = {
        "aot_inductor.package_constants_in_so": False,
        "cpp.dynamic_threads": True,  # instances share cores: their number is set at run time
    }
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "module.pt2"
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=config
            )
        except Exception as error:
            raise CannotCompile(f"self.{path} does not compile: {_first_lines(error)}") from error
        with zipfile.ZipFile(package) as archive:
            libraries = [name for name in archive.namelist() if name.endswith(".so")]
            if len(libraries) != 1:
                raise CannotCompile(f"self.{path} compiles to {len(libraries)} libraries")
            if any(name.endswith("extern_kernel_nodes.json") for name in archive.namelist()):
                raise CannotCompile(f"self.{path} uses operators that only torch itself can call")
            library = f"{path}.so"
            with archive.open(libraries[0]) as source, open(out / library, "wb") as copy:
                shutil.copyfileobj(source, copy)
    tensors = {f"module.{n}": t for n, t in module.state_dict(keep_vars=True).items()}
    tensors |= {f"module.{n}": t for n, t in module.named_buffers()}
    more = {name: t for name, t in program.constants.items() if isinstance(t, torch.Tensor)}
    own = {name: t for name, t in more.items() if name not in tensors}
    if dtype is not None:
        own |= tensors
    stored: dict[str, Any] = {}
    with open(out / CONSTANTS, "ab") as file:
        for name, tensor in own.items():
            file.write(bytes(-file.tell() % 64))
            kept = tensor.detach().contiguous()
            stored[name.removeprefix("module.")] = [
                str(kept.dtype).removeprefix("torch."),
                list(kept.shape),
                file.tell(),
            ]
            file.write(kept.view(-1).view(torch.uint8).numpy().tobytes())
    return library, stored


def _first_lines(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return "\n".join(text.splitlines()[:6])[:600]
