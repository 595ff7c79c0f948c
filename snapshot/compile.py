"""Compiling the modules of a snapshot: torch.export, then AOTInductor, weights left outside.

Slow (tens of seconds, a C++ compiler) and it imports torch._inductor, so it runs in a process of
its own. What comes out is read by ``form`` and run by ``compiled``, which needs none of this.
"""

import contextlib
import math
import re
import shutil
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from sympy import Eq
from torch.fx import GraphModule
from torch.utils._sympy.printers import PythonPrinter

from zerowake.snapshot import conditions
from zerowake.snapshot.arrays import Kind, give
from zerowake.snapshot.calls import Calls
from zerowake.snapshot.errors import CannotCompile
from zerowake.snapshot.form import CONSTANTS
from zerowake.snapshot.layout import ALIGN_NBYTES
from zerowake.snapshot.libtorch import Library, libtorch
from zerowake.snapshot.lookups import bounds, guard
from zerowake.snapshot.output import take_apart
from zerowake.snapshot.products import generated_products
from zerowake.snapshot.strided import Array, reach

MANY = 100_000  # entries, more than which an example to try out would be too large
# How far a library's answer may be from the module's, relative to the largest value: rounding, and
# that of a lower precision.
_ALIKE, _ALIKE_LOWER = 1e-4, 2e-2


@torch.no_grad()
def compile_module(calls: Calls, out: Path, dtype: str | None) -> dict[str, Any]:
    """Compile one module into ``out``; returns its entry in form.json.

    Writes ``<path>.so``, and to CONSTANTS what the snapshot does not hold. dtype: of the weights and
    the arithmetic, by torch's name; None keeps them. Raises CannotCompile with what stands against it.
    """
    names, fixed = calls.arguments()
    module = calls.module
    if module.training:
        raise CannotCompile(f"self.{calls.path} is in training mode; call eval() in load")
    if dtype is not None:
        module = module.to(getattr(torch, dtype))
    # As eager: lists and numpy arrays become what the module computes in, tensors stay as they are.
    cast = dtype is not None or calls.kind(names) is not Kind.TORCH
    flat = _Flat(module, names, fixed, cast)
    examples = calls.tensors(names)
    if len({tuple(t.ndim for t in each) for each in examples}) > 1:
        raise CannotCompile(f"self.{calls.path} is called with different ranks on the probe")
    if more := _widened(flat, examples, calls.unasked(names, fixed)):
        with contextlib.suppress(CannotCompile):
            return _compile(calls, flat, names, fixed, examples, more, out, dtype)
    return _compile(calls, flat, names, fixed, examples, [], out, dtype)


def _widened(
    flat: "_Flat", examples: list[list[torch.Tensor]], unasked: list[list[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    """Examples in which sizes are larger that are 1 on the whole probe, if the module takes them.

    Export takes a size of 1 for one that never varies: a batch of one example, say.
    """
    more = list(unasked)
    largest = max([*examples, *more], key=_generality)
    ones = [
        all(each[place].shape[:1] == (1,) for each in [*examples, *more])
        for place in range(len(examples[0]))
    ]
    if any(ones):
        more.append([torch.cat([t, t]) if one else t for t, one in zip(largest, ones, strict=True)])
    ranks = [t.ndim for t in examples[0]]
    more = [each for each in more if [t.ndim for t in each] == ranks and _answers(flat, each)]
    return more if more and _dynamic([*examples, *more]) != _dynamic(examples) else []


def _answers(flat: "_Flat", example: Sequence[torch.Tensor]) -> bool:
    try:
        flat(*example)
    except Exception:
        return False
    return True


def _compile(
    calls: Calls,
    flat: "_Flat",
    names: list[str],
    fixed: Mapping[str, Any],
    probe: list[list[torch.Tensor]],
    more: list[list[torch.Tensor]],
    out: Path,
    dtype: str | None,
) -> dict[str, Any]:
    examples = [*probe, *more]
    example = max(examples, key=_generality)
    try:
        flat(*example)  # finds the output's structure
        program = torch.export.export(
            flat, tuple(example), dynamic_shapes=(_dynamic(examples),), strict=False
        )
    except CannotCompile:
        raise
    except Exception as error:
        kind = f" as {dtype}" if dtype else ""
        raise CannotCompile(
            f"self.{calls.path} does not export{kind}: {_authors_line(error)}{_shortly(error)}"
        ) from error
    # Only a program without writes in place says what those would have changed.
    signature = program.run_decompositions({}).graph_signature
    if changed := [
        *signature.buffers_to_mutate.values(),
        *signature.user_inputs_to_mutate.values(),
    ]:
        raise CannotCompile(f"the forward of self.{calls.path} writes into {changed[0]}")
    graph = program.module(check_guards=False)
    inputs, ranges = _inputs(calls, names, program, graph, examples)
    guards = _guards(calls, program, inputs, ranges)
    lookups = guard(graph)
    known = _Known.of(graph)
    limit = _ALIKE if dtype is None else _ALIKE_LOWER
    # Where nothing could be generated, a second library would be the first one again.
    floats = {p.dtype for p in (*flat.parameters(), *flat.buffers()) if p.is_floating_point()}
    generated = dtype is None and (torch.float32 in floats or not floats)
    trial = _Trial(*_build(calls.path, graph, example, generated), flat, inputs, limit)
    is_right = all(map(trial.agrees, probe))
    if generated and not is_right:  # it has its faults
        trial = _Trial(*_build(calls.path, graph, example, False), flat, inputs, limit)
        is_right = all(map(trial.agrees, probe))
    guards += [text for text in known.since(calls.path, ranges) if text not in guards]
    if more and not is_right:
        raise CannotCompile(f"self.{calls.path} answers otherwise where its sizes vary")
    _try_ones(trial, example, ranges)
    # Export also wants sizes that it computes not to be 1, because of broadcasting. Where the probe
    # and the trials show that they may be, it is no condition.
    shown = [*trial.right, *(_sizes(inputs, each) for each in probe)]
    guards = [
        text
        for text in guards
        if not text.endswith("!= 1") or all(map(conditions.parse(text, ranges), shown))
    ]
    shutil.copyfile(trial.file, out / f"{calls.path}.so")
    parameters = [
        (p.name, p.kind.name, [] if p.default is p.empty else [p.default])
        for p in calls.signature.parameters.values()
    ]
    return {
        "path": calls.path,
        "library": f"{calls.path}.so",
        "signature": parameters,
        "fixed": fixed,
        "inputs": inputs,
        "ranges": ranges,
        "guards": guards,
        "limits": _limits(calls.path, flat, example, inputs, ranges, guards),
        "output": flat.tree,
        "lookups": lookups,
        "constants": _constants(trial.weights, out, flat.module, dtype),
    }


class _Flat(torch.nn.Module):
    """A module as a function of its array arguments, its results a flat tuple.

    cast: whether arguments become of the dtype of its parameters, where it has any.
    """

    def __init__(
        self, module: torch.nn.Module, names: list[str], fixed: Mapping[str, Any], cast: bool
    ) -> None:
        super().__init__()
        self.module = module
        self.tree: Any = None
        self._names, self._fixed = names, dict(fixed)
        floats = (p.dtype for p in module.parameters() if p.is_floating_point())
        self._cast = next(floats, None) if cast else None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        to = self._cast
        given = [t.to(to) if to is not None and t.is_floating_point() else t for t in tensors]
        result = self.module(**dict(zip(self._names, given, strict=True)), **self._fixed)
        results: list[torch.Tensor] = []
        self.tree = take_apart(result, torch.Tensor, results)
        return tuple(map(_dense, results))


def _dense(result: torch.Tensor) -> torch.Tensor:
    """Contiguous, and of at least float32: nested lists have nothing smaller."""
    half = result.dtype in (torch.float16, torch.bfloat16)
    return (result.float() if half else result).contiguous()


def _generality(tensors: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Greater for a better example: export takes a size of 1 for one that never varies."""
    return -sum(t.shape.count(1) for t in tensors), sum(t.numel() for t in tensors)


def _dynamic(examples: Sequence[list[torch.Tensor]]) -> tuple[dict[int, Any], ...]:
    """Sizes that differ between calls may vary; so may all others but those of 1, if they can."""
    largest = [
        [max(sizes) for sizes in zip(*(t.shape for t in ts), strict=True)]
        for ts in zip(*examples, strict=True)
    ]
    auto = torch.export.Dim.AUTO
    return tuple({place: auto for place, size in enumerate(sizes) if size > 1} for sizes in largest)


def _inputs(
    calls: Calls,
    names: list[str],
    program: Any,
    graph: GraphModule,
    examples: Sequence[list[torch.Tensor]],
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int | None]]]:
    """The inputs with their sizes, and the range of each size that varies."""
    nodes = graph.graph.find_nodes(op="placeholder")
    inputs, ranges = [], {}
    tables = bounds(graph)
    counts = {
        str(node.meta["val"].node.expr): rows
        for node, rows in tables.items()
        if isinstance(node.meta.get("val"), torch.SymInt)
    }
    for place, (name, node) in enumerate(zip(names, nodes, strict=True)):
        tensor = node.meta["val"]
        shape: list[int | str] = []
        for dim, size in enumerate(tensor.shape):
            if not isinstance(size, torch.SymInt):
                shape.append(int(size))
                continue
            expression = size.node.expr
            if expression.is_Integer:  # varied in theory, and the module wants this one
                shape.append(int(expression))
                continue
            if not expression.is_Symbol:
                raise CannotCompile(
                    f"self.{calls.path}: {name} must have {expression} entries in dimension {dim}"
                )
            limits = program.range_constraints[expression]
            least, most = int(limits.lower), limits.upper
            most = min(most, counts.get(str(expression), most))
            # 1 is special to export (broadcasting); the probe shows whether it is right.
            proved = min(int(tensors[place].shape[dim]) for tensors in examples)
            ranges[str(expression)] = (
                1 if least == 2 and proved <= 1 else least,
                int(most) if str(most).isdigit() else None,
            )
            shape.append(str(expression))
        dtype = str(tensor.dtype).removeprefix("torch.")
        inputs.append({"name": name, "dtype": dtype, "shape": shape, "below": tables.get(node, 0)})
    return inputs, ranges


def _guards(
    calls: Calls,
    program: Any,
    inputs: Sequence[Mapping[str, Any]],
    ranges: Mapping[str, tuple[int, int | None]],
) -> list[str]:
    """What holds for all sizes that the program is right for, beside their ranges."""

    def size(found: re.Match[str]) -> str:
        return str(inputs[int(found[1])]["shape"][int(found[2])])

    guards = []
    for code in program._guards_code:
        text = re.sub(r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\]", size, code)
        text = _plain(text)
        left, _, right = text.partition(" == ")
        if left == right or re.fullmatch(r"\w+ [<>]=? \d+", text):  # one size, or its range
            continue
        try:
            is_met = conditions.parse(text, ranges)
        except ValueError:
            raise CannotCompile(f"self.{calls.path} is right only for sizes with {code}") from None
        if any(name in text for name in ranges):
            guards.append(text)
        elif not is_met({}):
            raise CannotCompile(f"self.{calls.path} wants {code}")
    return guards


def _plain(text: str) -> str:
    """torch's own names for functions of sizes, as Python's."""
    return re.sub(r"\btorch\.sym_(\w+)", r"\1", text)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a graph's sizes before it is lowered. env: None where no size varies."""

    env: Any
    guards: int
    replacements: Mapping[Any, Any]

    @classmethod
    def of(cls, graph: GraphModule) -> "_Known":
        sizes = chain.from_iterable(
            node.meta["val"].shape for node in graph.graph.find_nodes(op="placeholder")
        )
        env = next((s.node.shape_env for s in sizes if isinstance(s, torch.SymInt)), None)
        return cls(env, *((len(env.guards), dict(env.replacements)) if env else (0, {})))

    def since(self, path: str, ranges: Mapping[str, Any]) -> list[str]:
        """Conditions that Inductor has added: sizes, and sums of them, that it took for constants.

        Its inequalities choose between kernels that are all right for all sizes.
        """
        if self.env is None:
            return []
        new = {a: b for a, b in self.env.replacements.items() if self.replacements.get(a) != b}
        found = [g.expr for g in self.env.guards[self.guards :] if isinstance(g.expr, Eq)]
        inner = {a: b for a, b in self.env.replacements.items() if str(a) not in ranges}
        found = [each.xreplace(inner) for each in found]
        found += [Eq(a, b, evaluate=False) for a, b in new.items() if str(a) in ranges]
        texts = {
            _plain(PythonPrinter().doprint(each))
            for each in found
            if each.free_symbols and {*map(str, each.free_symbols)} <= ranges.keys()
        }
        for text in texts:
            try:
                conditions.parse(text, ranges)
            except ValueError:
                raise CannotCompile(f"self.{path} is right only for sizes with {text}") from None
        return sorted(texts)


def _build(
    path: str, graph: GraphModule, example: Sequence[torch.Tensor], generated: bool
) -> tuple[Path, dict[str, torch.Tensor]]:
    """The compiled library, where the compiler keeps it, and its constants.

    generated: with generated products, where Inductor can.
    """
    options = {
        "aot_inductor.package": True,  # files as they are, in a list
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.package_constants_on_disk_format": "pickle_weights",  # and weights in it
        "cpp.dynamic_threads": True,  # instances share cores: their number is set at run time
    }
    try:
        with generated_products(graph, generated) as more:
            made = torch._inductor.aot_compile(graph, tuple(example), options={**options, **more})
    except Exception as error:
        if generated:  # it may be their fault
            return _build(path, graph, example, False)
        raise CannotCompile(f"self.{path} does not compile: {_first_lines(error)}") from error
    assert isinstance(made, list)
    files = [Path(file) for file in made if isinstance(file, str)]
    # All that the library needs is in it; a GPU's kernels, say, would lie beside it.
    if odd := {file.suffix for file in files} - {".so", ".cpp", ".json"}:
        raise CannotCompile(f"self.{path} compiles to files of unknown kinds: {sorted(odd)}")
    weights = {n: t for each in made if isinstance(each, dict) for n, (t, _) in each.items()}
    libraries = [file for file in files if file.suffix == ".so"]
    if len(libraries) != 1:
        raise CannotCompile(f"self.{path} compiles to {len(libraries)} libraries")
    # Such calls go through an executor of torch's, which reads them from a file beside the library.
    if any(
        file.name.endswith((".wrapper.json", "extern_kernel_nodes.json")) for file in files
    ) or any(
        "aoti_torch_proxy_executor_call_function" in file.read_text()
        for file in files
        if file.suffix == ".cpp" and file.is_file()
    ):
        raise CannotCompile(f"self.{path} uses operators that only torch itself can call")
    return libraries[0], weights


class _Trial:
    """Compares a compiled library with the module. right: sizes with which they have agreed."""

    def __init__(
        self,
        file: Path,
        weights: Mapping[str, torch.Tensor],
        flat: _Flat,
        inputs: Sequence[Mapping[str, Any]],
        limit: float,
    ) -> None:
        self.file, self.weights = file, weights
        self._library, self._flat, self._limit = Library(file, libtorch()), flat, limit
        self._library.bind([_array(weights[constant.fqn]) for constant in self._library.constants])
        self._tree, self._inputs = flat.tree, inputs
        self.right: list[dict[str, int]] = []

    def agrees(self, tensors: Sequence[torch.Tensor], ones: Collection[str] = ()) -> bool:
        """``ones``: sizes that are cut to 1."""
        cut = [
            tensor[tuple(slice(1) if size in ones else slice(None) for size in each["shape"])]
            for tensor, each in zip(tensors, self._inputs, strict=True)
        ]
        try:
            wanted = self._flat(*cut)
            found = self._library.run([_array(tensor.contiguous()) for tensor in cut])
            alike = self._flat.tree == self._tree and all(
                map(self._is_close, wanted, (give(each, Kind.TORCH) for each in found))
            )
        except (IndexError, RuntimeError, ValueError):
            return False
        finally:
            self._flat.tree = self._tree
        if alike:
            self.right.append(_sizes(self._inputs, cut))
        return alike

    def _is_close(self, wanted: torch.Tensor, found: torch.Tensor) -> bool:
        if wanted.shape != found.shape:
            return False
        wanted, found, limit = wanted.double(), found.double(), self._limit
        largest = max((abs(x) for x in wanted.flatten().tolist() if math.isfinite(x)), default=0.0)
        return torch.allclose(wanted, found, limit, limit * largest, equal_nan=True)


def _try_ones(
    trial: _Trial, example: Sequence[torch.Tensor], ranges: dict[str, tuple[int, int | None]]
) -> None:
    """Let sizes be 1 as well where the library then answers as the module does.

    Export takes a size of 1 for special, because of broadcasting, and starts most ranges at 2.
    """
    known = [name for name, (least, _) in ranges.items() if least == 1]  # the probe shows it
    for name, (least, most) in ranges.items():
        if least == 2 and all(trial.agrees(example, {name, *some}) for some in _subsets(known)):
            ranges[name] = (1, most)
            known.append(name)


def _sizes(inputs: Sequence[Mapping[str, Any]], tensors: Sequence[torch.Tensor]) -> dict[str, int]:
    """The named sizes in an example."""
    return {
        name: size
        for each, tensor in zip(inputs, tensors, strict=True)
        for name, size in zip(each["shape"], tensor.shape, strict=True)
        if isinstance(name, str)
    }


def _limits(
    path: str,
    flat: _Flat,
    example: Sequence[torch.Tensor],
    inputs: Sequence[Mapping[str, Any]],
    ranges: Mapping[str, tuple[int, int | None]],
    guards: Sequence[str],
) -> str | None:
    """Which shapes the library takes, in a few words; None if the module takes no others.

    Whether it does is tried, with one more or less of each size that cannot be so.
    """
    tree = flat.tree

    def takes(chosen: Callable[[int, int | str], bool], count: int) -> bool:
        def resized(tensor: torch.Tensor, each: Mapping[str, Any]) -> torch.Tensor:
            for dim, size in enumerate(each["shape"]):
                if chosen(dim, size):
                    places = torch.arange(count) % tensor.shape[dim]
                    tensor = tensor.index_select(dim, places)
            return tensor

        answers = _answers(flat, list(map(resized, example, inputs)))
        flat.tree = tree
        return answers

    def named(name: str) -> Callable[[int, int | str], bool]:
        return lambda dim, size: size == name

    def fixed(at: int, count: int) -> Callable[[int, int | str], bool]:
        return lambda dim, size: (dim, size) == (at, count)

    counts = {
        (dim, size)
        for each in inputs
        for dim, size in enumerate(each["shape"])
        if isinstance(size, int)
    }
    # Least sizes that are computed are mostly those of a kernel, below which the module raises.
    branches = [
        conditions.in_words(text, [(each["name"], each["shape"]) for each in inputs])
        for text in guards
        if not text.endswith("!= 1") and ">" not in text
    ]
    if not (
        branches
        or any(least > 1 and takes(named(n), least - 1) for n, (least, _) in ranges.items())
        or any(
            most and most < MANY and takes(named(n), most + 1) for n, (_, most) in ranges.items()
        )
        or any(takes(fixed(at, n), n - 1 if n > 1 else 2) for at, n in counts)
    ):
        return None

    def told(size: int | str) -> str:
        if isinstance(size, int):
            return str(size)
        least, most = ranges[size]
        if most is None:
            return "any" if least <= 1 else f"{least} or more"
        return f"{least} to {most}"

    taken = ", ".join(
        f"{each['name']}: {' x '.join(map(told, each['shape'])) or 'a number'}" for each in inputs
    )
    more = f" with {' and '.join(branches[:2])}" if branches else ""
    return f"{path}({taken}){more}"


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(names, n) for n in range(len(names) + 1)))


def _array(tensor: torch.Tensor) -> Array:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Array(tensor.data_ptr(), dtype, tuple(tensor.shape), tensor.stride(), tensor)


def _constants(
    weights: Mapping[str, torch.Tensor], out: Path, module: torch.nn.Module, dtype: str | None
) -> dict[str, Any]:
    """How each constant lies in memory; what the snapshot does not hold is added to CONSTANTS."""
    # The snapshot holds the module's own, as they were: no constants of its graph, no other dtype.
    held = {
        n
        for n, _ in (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        )
    }
    if dtype is not None:
        held.clear()
    constants: dict[str, Any] = {}
    with open(out / CONSTANTS, "ab") as file:
        for name, tensor in weights.items():
            name = name.removeprefix("module.")
            kind = str(tensor.dtype).removeprefix("torch.")
            constants[name] = [kind, list(tensor.shape), list(tensor.stride()), None]
            if name not in held:
                file.write(bytes(-file.tell() % ALIGN_NBYTES))
                constants[name][-1] = file.tell()
                file.write(_flat_memory(tensor))
    return constants


def _flat_memory(tensor: torch.Tensor) -> bytes:
    """All elements with the gaps between them: compiled code takes a constant's strides for granted."""
    flat = tensor.detach().as_strided((reach(tensor.shape, tensor.stride()),), (1,))
    return flat.clone().view(torch.uint8).numpy().tobytes()


def _authors_line(error: BaseException) -> str:
    """The innermost line of neither torch nor us: what torch says of itself helps nobody."""
    ours = tuple(str(Path(file).resolve().parent) for file in (torch.__file__, __file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not str(Path(frame.filename).resolve()).startswith(ours)
    ]
    if not frames:
        return ""
    where = frames[-1]
    return f"{Path(where.filename).name}:{where.lineno} `{(where.line or '')[:120]}`: "


def _shortly(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0].partition(" (unhinted")[0]
    return f"{type(error).__name__}: {first[:200]}"


def _first_lines(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return "\n".join(text.splitlines()[:6])[:600]
