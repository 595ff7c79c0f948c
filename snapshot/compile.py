"""Compiling the modules of a snapshot: torch.export, then AOTInductor, weights left outside.

Slow (tens of seconds, a C++ compiler) and it imports torch._inductor, so it runs in a process of
its own. What comes out is read by ``form`` and run by ``compiled``, which needs none of this.
"""

import contextlib
import shutil
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from zerowake.snapshot import conditions
from zerowake.snapshot.arrays import Kind
from zerowake.snapshot.calls import Calls
from zerowake.snapshot.errors import CannotCompile
from zerowake.snapshot.flat import Flat, answers
from zerowake.snapshot.form import CONSTANTS
from zerowake.snapshot.layout import ALIGN_NBYTES
from zerowake.snapshot.lookups import guard
from zerowake.snapshot.products import generated_products
from zerowake.snapshot.sizes import Known, dynamic, generality, guards_of, inputs_of
from zerowake.snapshot.strided import reach
from zerowake.snapshot.trial import Trial, limits, sizes_in, try_ones

# How far a library's answer may be from the module's, relative to the largest value: rounding, and
# that of a lower precision.
_ALIKE, _ALIKE_LOWER = 1e-4, 2e-2


@torch.no_grad()
def compile_module(calls: Calls, out: Path, dtype: str | None) -> dict[str, Any]:
    """Compile one module into ``out``; returns its entry in form.json, and with it ``limits``, in words.

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
    flat = Flat(module, names, fixed, cast)
    examples = calls.tensors(names)
    if len({tuple(t.ndim for t in each) for each in examples}) > 1:
        raise CannotCompile(f"self.{calls.path} is called with different ranks on the probe")
    if more := _widened(flat, examples, calls.unasked(names, fixed)):
        with contextlib.suppress(CannotCompile):
            return _compile(calls, flat, names, fixed, examples, more, out, dtype)
    return _compile(calls, flat, names, fixed, examples, [], out, dtype)


def _widened(
    flat: Flat, examples: list[list[torch.Tensor]], unasked: list[list[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    """Examples in which sizes are larger that are 1 on the whole probe, if the module takes them.

    Export takes a size of 1 for one that never varies: a batch of one example, say.
    """
    more = list(unasked)
    largest = max([*examples, *more], key=generality)
    ones = [
        all(each[place].shape[:1] == (1,) for each in [*examples, *more])
        for place in range(len(examples[0]))
    ]
    if any(ones):
        more.append([torch.cat([t, t]) if one else t for t, one in zip(largest, ones, strict=True)])
    ranks = [t.ndim for t in examples[0]]
    more = [each for each in more if [t.ndim for t in each] == ranks and answers(flat, each)]
    return more if more and dynamic([*examples, *more]) != dynamic(examples) else []


def _compile(
    calls: Calls,
    flat: Flat,
    names: list[str],
    fixed: Mapping[str, Any],
    probe: list[list[torch.Tensor]],
    more: list[list[torch.Tensor]],
    out: Path,
    dtype: str | None,
) -> dict[str, Any]:
    examples = [*probe, *more]
    example = max(examples, key=generality)
    try:
        flat(*example)  # finds the output's structure
        program = torch.export.export(
            flat, tuple(example), dynamic_shapes=(dynamic(examples),), strict=False
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
    inputs, ranges = inputs_of(calls, names, program, graph, examples)
    guards = guards_of(calls, program, inputs, ranges)
    lookups = guard(graph)
    known = Known.of(graph)
    limit = _ALIKE if dtype is None else _ALIKE_LOWER
    # Where nothing could be generated, a second library would be the first one again.
    floats = {p.dtype for p in (*flat.parameters(), *flat.buffers()) if p.is_floating_point()}
    generated = dtype is None and (torch.float32 in floats or not floats)
    trial = Trial(*_build(calls.path, graph, example, generated), flat, inputs, limit)
    is_right = all(map(trial.agrees, probe))
    if generated and not is_right:  # it has its faults
        trial = Trial(*_build(calls.path, graph, example, False), flat, inputs, limit)
        is_right = all(map(trial.agrees, probe))
    guards += [text for text in known.since(calls.path, ranges) if text not in guards]
    if more and not is_right:
        raise CannotCompile(f"self.{calls.path} answers otherwise where its sizes vary")
    try_ones(trial, example, ranges)
    # Export also wants sizes that it computes not to be 1, because of broadcasting. Where the probe
    # and the trials show that they may be, it is no condition.
    shown = [*trial.right, *(sizes_in(inputs, each) for each in probe)]
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
        "limits": limits(calls.path, flat, example, inputs, ranges, guards),
        "output": flat.tree,
        "lookups": lookups,
        "constants": _constants(trial.weights, out, flat.module, dtype),
    }


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
