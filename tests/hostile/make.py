"""Writes the corpus of hostile snapshots: ``python tests/hostile/make.py`` (needs no torch).

``corpus/good`` is a sound snapshot. Each other folder holds only the files in which a hostile one
differs from it; ``corpus/expected.json`` says how it must be refused: the error's class, words of
the reason, files to leave out, and the stage ("open" or "digests") that must notice.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
PAGE = 4096
BLOCK = 4 << 20

APP = b"""import os
import pathlib

pathlib.Path(os.environ["ZEROWAKE_CANARY"]).touch()


class App:
    def predict(self, item):
        return item
"""

Files = dict[str, bytes]
Plain = dict[str, Any]


def canonical(plain: object) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode("ascii")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def weights(tensors: list[Plain], data: bytes, pad: int = PAGE) -> bytes:
    head = {
        t["name"]: {
            "dtype": t["dtype"],
            "shape": t["shape"],
            "data_offsets": [t["offset"], t["offset"] + t["nbytes"]],
        }
        for t in tensors
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    size = -(-(8 + len(text)) // pad) * pad
    return struct.pack("<Q", size - 8) + text.ljust(size - 8) + data


def segment(data: bytes) -> Plain:
    blocks = [sha(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    return {
        "file": "weights-00001.safetensors",
        "nbytes": len(data),
        "data_offset": 8 + struct.unpack("<Q", data[:8])[0],
        "block_nbytes": BLOCK,
        "blocks": blocks,
    }


def tensor(name: str, offset: int, shape: list[int], dtype: str = "F32", item: int = 4) -> Plain:
    nbytes = item
    for n in shape:
        nbytes *= n
    return {
        "name": name,
        "segment": 0,
        "offset": offset,
        "nbytes": nbytes,
        "dtype": dtype,
        "shape": shape,
        "mutated": False,
    }


def good() -> Files:
    tensors = [
        tensor("model.weight", 0, [4, 4]),
        tensor("table", 64, [16]),
        tensor("model.bias", 128, [4]),
    ]
    data = struct.pack("<36f", *range(36))
    skeleton = {
        "names": [
            ["module", "torch.nn.modules.linear:Linear"],
            ["function", "torch.nn.functional:relu"],
            ["object", "app:App"],
        ],
        "early": [],
        "root": [7],
        "nodes": [
            {"t": "tensor", "i": 0, "p": True, "g": True},
            {"t": "tensor", "i": 2, "p": True, "g": True},
            {
                "t": "module",
                "c": 0,
                "s": {"training": False, "in_features": 4, "out_features": 4},
                "p": {"weight": [0], "bias": [1]},
            },
            {"t": "tensor", "i": 1, "v": ["float32", [2, 3], [1, 2], 4]},
            {"t": "function", "c": 1},
            {"t": "plain", "asset": "assets/1-plain.json"},
            {"t": "array", "i": 1, "dtype": "<f4", "shape": [16]},
            {
                "t": "object",
                "c": 2,
                "s": {"model": [2], "view": [3], "act": [4], "words": [5], "array": [6], "n": 1},
            },
        ],
    }
    proof = {
        "seed": 24301,
        "cases": [{"items": [{"text": "1"}], "answers": [[{"text": "1"}]], "unsteady": [[]][0]}],
    }
    files = {
        "weights-00001.safetensors": weights(tensors, data),
        "skeleton.json": json.dumps(skeleton).encode(),
        "proof.json": canonical(proof),
        "assets/1-plain.json": b'{"a":1}',
        "code/app.py": APP,
    }
    manifest = {
        "format": {"name": "zerowake", "version": 1},
        "name": "good",
        "function": {"target": "app:App"},
        "code": {"entry": "app.py", "files": {"app.py": sha(APP)}},
        "files": {
            p: {"nbytes": len(d), "sha256": sha(d)} for p, d in files.items() if "weig" not in p
        },
        "segments": [segment(files["weights-00001.safetensors"])],
        "tensors": tensors,
        "environment": {"python": "3.11.7", "torch": "2.13.0", "machine": "x86_64", "threads": 1},
        "created_by": "zerowake 0.1.0",
    }
    sign_code(manifest)
    return {"manifest.json": canonical(manifest), **files}


def sign_code(manifest: Plain) -> None:
    files = manifest["code"]["files"]
    lines = "".join(f"{files[p]}  {p}\n" for p in sorted(files))
    manifest["code"]["digest"] = "sha256:" + sha(lines.encode())


# changes, each from the good files to hostile ones

Change = Callable[[Files], None]


def in_manifest(change: Callable[[Plain], object]) -> Change:
    def apply(files: Files) -> None:
        manifest = json.loads(files["manifest.json"])
        change(manifest)
        files["manifest.json"] = canonical(manifest)

    return apply


def in_skeleton(change: Callable[[Plain], object]) -> Change:
    """Also signs the changed skeleton, as an attacker would."""

    def apply(files: Files) -> None:
        skeleton = json.loads(files["skeleton.json"])
        change(skeleton)
        put("skeleton.json", json.dumps(skeleton).encode())(files)

    return apply


def put(path: str, data: bytes) -> Change:
    def apply(files: Files) -> None:
        files[path] = data
        entry = {"nbytes": len(data), "sha256": sha(data)}
        in_manifest(lambda m: m["files"].update({path: entry}))(files)

    return apply


def put_code(path: str, data: bytes) -> Change:
    def apply(files: Files) -> None:
        put(f"code/{path}", data)(files)
        in_manifest(lambda m: (m["code"]["files"].update({path: sha(data)}), sign_code(m)))(files)

    return apply


def in_table(change: Callable[[list[Plain]], object], data: bytes | None = None) -> Change:
    """Changes the tensor table and writes a weights file that agrees with it."""

    def apply(files: Files) -> None:
        manifest = json.loads(files["manifest.json"])
        change(manifest["tensors"])
        content = struct.pack("<36f", *range(36)) if data is None else data
        file = weights(manifest["tensors"], content)
        manifest["segments"] = [segment(file)]
        files["weights-00001.safetensors"] = file
        files["manifest.json"] = canonical(manifest)

    return apply


def raw(path: str, change: Callable[[bytes], bytes]) -> Change:
    """Changes a file and signs nothing."""

    def apply(files: Files) -> None:
        files[path] = change(files[path])

    return apply


def flip(path: str, at: int) -> Change:
    return raw(path, lambda d: d[:at] + bytes([d[at] ^ 1]) + d[at + 1 :])


def named(kind: str, name: str) -> Change:
    return in_skeleton(lambda s: s["names"].append([kind, name]))


def node(*nodes: Plain) -> Change:
    """Puts nodes in front of the root, where node 8 is the first of them."""
    return in_skeleton(lambda s: s["nodes"].extend(nodes))


def reheader(change: Callable[[Plain], object]) -> Change:
    """Changes the weights file's own header and signs the file."""

    def apply(files: Files) -> None:
        file = files["weights-00001.safetensors"]
        size = struct.unpack("<Q", file[:8])[0]
        head = json.loads(file[8 : 8 + size])
        change(head)
        file = file[:8] + json.dumps(head).encode().ljust(size) + file[8 + size :]
        files["weights-00001.safetensors"] = file
        in_manifest(lambda m: m.update(segments=[segment(file)]))(files)

    return apply


D, F, V = "DamagedSnapshot", "ForbiddenClass", "UnsupportedVersion"
WEIGHTS = "weights-00001.safetensors"
OPEN, DIGESTS = "open", "digests"


def first(tensors: list[Plain], **fields: Any) -> None:
    tensors[0].update(fields)


CASES: dict[str, tuple[Change, str, str, str]] = {
    # files that changed on the way
    "truncated-weights": (raw(WEIGHTS, lambda d: d[:-1]), D, "has 4239 bytes", OPEN),
    "longer-weights": (raw(WEIGHTS, lambda d: d + b"\0"), D, "has 4241 bytes", OPEN),
    "truncated-skeleton": (raw("skeleton.json", lambda d: d[:-1]), D, "bytes, the manifest", OPEN),
    "truncated-manifest": (raw("manifest.json", lambda d: d[:-1]), D, "not acceptable JSON", OPEN),
    "empty-manifest": (raw("manifest.json", lambda d: b""), D, "not acceptable JSON", OPEN),
    "flip-weights": (flip(WEIGHTS, PAGE + 5), D, "block 0 of weights-00001", DIGESTS),
    "flip-weights-header": (flip(WEIGHTS, 20), D, "same tensors", OPEN),
    "flip-skeleton": (flip("skeleton.json", -30), D, "SHA-256", OPEN),
    "flip-proof": (flip("proof.json", 40), D, "proof.json is damaged", DIGESTS),
    "flip-asset": (flip("assets/1-plain.json", 2), D, "assets/1-plain.json is damaged", DIGESTS),
    "flip-code": (flip("code/app.py", 60), D, "code/app.py is damaged", DIGESTS),
    "flip-manifest-digest": (
        in_manifest(lambda m: m["files"]["skeleton.json"].update(sha256="0" * 64)),
        D,
        "skeleton.json does not have the SHA-256",
        OPEN,
    ),
    # the manifest
    "newer-version": (in_manifest(lambda m: m["format"].update(version=2)), V, "version 2", OPEN),
    "version-true": (in_manifest(lambda m: m["format"].update(version=True)), V, "True", OPEN),
    "other-format": (
        in_manifest(lambda m: m["format"].update(name="zip")),
        D,
        "not a Zerowake",
        OPEN,
    ),
    "unknown-field": (in_manifest(lambda m: m.update(hook="x")), D, "hook", OPEN),
    "missing-field": (in_manifest(lambda m: m.pop("tensors")), D, "tensors", OPEN),
    "not-canonical": (raw("manifest.json", lambda d: d + b"\n"), D, "not canonical", OPEN),
    "duplicate-keys": (
        raw("manifest.json", lambda d: d.replace(b'"name":"good"', b'"name":"good","name":"evil"')),
        D,
        "'name' occurs twice",
        OPEN,
    ),
    "deep-nesting": (
        in_manifest(lambda m: m.update(function=json.loads('{"a":' * 80 + "1" + "}" * 80))),
        D,
        "nested deeper",
        OPEN,
    ),
    "very-deep-nesting": (
        raw("manifest.json", lambda d: b'{"function":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
        D,
        "nested deeper",
        OPEN,
    ),
    "huge-integer": (
        raw("manifest.json", lambda d: d.replace(b'"offset":64', b'"offset":' + b"9" * 5000)),
        D,
        "not acceptable JSON",
        OPEN,
    ),
    "nan-size": (
        raw("manifest.json", lambda d: d.replace(b'"nbytes":64', b'"nbytes":NaN', 1)),
        D,
        "NaN is not a JSON number",
        OPEN,
    ),
    "infinite-size": (
        raw("manifest.json", lambda d: d.replace(b'"nbytes":64', b'"nbytes":1e999', 1)),
        D,
        "no finite number",
        OPEN,
    ),
    "negative-size": (in_manifest(lambda m: first(m["tensors"], nbytes=-64)), D, "-64", OPEN),
    "boolean-size": (in_manifest(lambda m: first(m["tensors"], nbytes=True)), D, "True", OPEN),
    "file-listed-twice": (
        in_manifest(lambda m: m["files"].update({WEIGHTS: m["files"]["proof.json"]})),
        D,
        "twice",
        OPEN,
    ),
    # paths
    "traversal-in-files": (
        in_manifest(lambda m: m["files"].update({"../etc/passwd": m["files"]["proof.json"]})),
        D,
        "relative path",
        OPEN,
    ),
    "absolute-in-files": (
        in_manifest(lambda m: m["files"].update({"/etc/passwd": m["files"]["proof.json"]})),
        D,
        "relative path",
        OPEN,
    ),
    "backslash-in-files": (
        in_manifest(lambda m: m["files"].update({"assets\\..\\x": m["files"]["proof.json"]})),
        D,
        "relative path",
        OPEN,
    ),
    "nul-in-files": (
        in_manifest(lambda m: m["files"].update({"assets/a\0b": m["files"]["proof.json"]})),
        D,
        "relative path",
        OPEN,
    ),
    "traversal-in-segment": (
        in_manifest(lambda m: m["segments"][0].update(file="../weights-00001.safetensors")),
        D,
        "relative path",
        OPEN,
    ),
    "other-segment-file": (
        in_manifest(lambda m: m["segments"][0].update(file="code/app.py")),
        D,
        "",
        OPEN,
    ),
    "traversal-in-code": (
        in_manifest(lambda m: m["code"]["files"].update({"../../app.py": sha(APP)})),
        D,
        "relative path",
        OPEN,
    ),
    "traversal-in-asset": (
        in_skeleton(lambda s: s["nodes"][5].update(asset="assets/../../secret")),
        D,
        "names the asset",
        OPEN,
    ),
    "tokenizer-file-elsewhere": (
        node({"t": "tokenizer", "asset": "assets/1-plain.json", "files": ["assets/../secret"]}),
        D,
        "names the asset",
        OPEN,
    ),
    "tokenizer-file-of-code": (
        node({"t": "tokenizer", "asset": "assets/1-plain.json", "files": ["code/app.py"]}),
        D,
        "names the asset",
        OPEN,
    ),
    "tokenizer-of-many-files": (
        node(
            {"t": "tokenizer", "asset": "assets/1-plain.json", "files": ["assets/1-plain.json"] * 3}
        ),
        D,
        "at most 2 files",
        OPEN,
    ),
    "tokenizer-files-no-list": (
        node({"t": "tokenizer", "asset": "assets/1-plain.json", "files": "assets/1-plain.json"}),
        D,
        "at most 2 files",
        OPEN,
    ),
    "code-as-asset": (
        in_skeleton(lambda s: s["nodes"][5].update(asset="code/app.py")),
        D,
        "names the asset",
        OPEN,
    ),
    "file-of-no-place": (put("setup.pth", b"import os"), D, "no place in a snapshot", OPEN),
    "unlisted-file": (lambda files: files.update({"code/extra.py": b""}), D, "not listed", OPEN),
    "missing-file": (
        lambda files: files.pop("proof.json") and None,
        D,
        "proof.json is missing",
        OPEN,
    ),
    # the author's code
    "code-shadows-python": (put_code("os.py", b""), D, "stand before", OPEN),
    "code-shadows-torch": (put_code("torch/nn/modules/linear.py", b""), D, "stand before", OPEN),
    "code-no-python": (put_code("app.so", b""), D, "no Python file", OPEN),
    "code-digests-disagree": (
        in_manifest(lambda m: m["code"]["files"].update({"app.py": "0" * 64})),
        D,
        "two digests",
        OPEN,
    ),
    "code-digest-wrong": (
        in_manifest(lambda m: m["code"].update(digest="sha256:" + "0" * 64)),
        D,
        "code.digest",
        OPEN,
    ),
    "code-entry-missing": (in_manifest(lambda m: m["code"].update(entry="b.py")), D, "entry", OPEN),
    # the tensor table
    "overlapping": (in_table(lambda t: t[1].update(offset=32)), D, "overlaps", OPEN),
    "hole": (in_table(lambda t: t[2].update(offset=132)), D, "hole", OPEN),
    "out-of-range": (
        in_table(lambda t: t[2].update(shape=[400], nbytes=1600)),
        D,
        "past the end",
        OPEN,
    ),
    "misaligned": (
        in_table(
            lambda t: (
                t.__setitem__(slice(None), [tensor("a", 0, [1], "U8", 1), tensor("b", 1, [35])]),
            ),
            bytes(141),
        ),
        D,
        "not on an element",
        OPEN,
    ),
    "bytes-after-the-last": (in_table(lambda t: None, bytes(200)), D, "past its last tensor", OPEN),
    "unknown-dtype": (in_table(lambda t: first(t, dtype="F3")), D, "'F3'", OPEN),
    "wrong-shape": (in_table(lambda t: first(t, shape=[4, 5])), D, "takes 80", OPEN),
    "overflowing-shape": (
        in_table(lambda t: first(t, shape=[1 << 40, 1 << 40])),
        D,
        "larger than any file",
        OPEN,
    ),
    "huge-offset": (in_manifest(lambda m: first(m["tensors"], offset=1 << 60)), D, "integer", OPEN),
    "no-such-segment": (
        in_manifest(lambda m: first(m["tensors"], segment=3)),
        D,
        "segment 3",
        OPEN,
    ),
    "tensor-without-elements": (
        in_table(lambda t: t.append(tensor("none", 144, [0]))),
        D,
        "no elements",
        OPEN,
    ),
    "tensor-many-dimensions": (
        in_table(lambda t: first(t, shape=[16] + [1] * 64)),
        D,
        "65 dimensions",
        OPEN,
    ),
    "same-name-twice": (in_table(lambda t: t[1].update(name="model.weight")), D, "", OPEN),
    "header-disagrees": (
        reheader(lambda h: h["table"].update(dtype="I32")),
        D,
        "the file's header says",
        OPEN,
    ),
    "header-has-more": (
        reheader(lambda h: h.update(x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
        D,
        "same tensors",
        OPEN,
    ),
    "header-length-lies": (
        raw(WEIGHTS, lambda d: struct.pack("<Q", 1 << 62) + d[8:]),
        D,
        "header of",
        OPEN,
    ),
    "data-on-no-page": (
        in_manifest(lambda m: m["segments"][0].update(data_offset=4100)),
        D,
        "data starts at",
        OPEN,
    ),
    "blocks-do-not-cover": (
        in_manifest(lambda m: m["segments"][0].update(blocks=[])),
        D,
        "blocks",
        OPEN,
    ),
    # names in the skeleton
    "name-os-system": (named("function", "os:system"), F, "'os:system'", OPEN),
    "name-posix-system": (named("function", "posix:system"), F, "posix:system", OPEN),
    "name-eval": (named("function", "builtins:eval"), F, "builtins:eval", OPEN),
    "name-eval-as-class": (named("class", "builtins:eval"), F, "builtins:eval", OPEN),
    "name-object": (named("object", "builtins:object"), F, "builtins:object", OPEN),
    "name-popen": (named("object", "subprocess:Popen"), F, "subprocess:Popen", OPEN),
    "name-torch-load": (named("function", "torch:load"), F, "torch:load", OPEN),
    "name-torch-hub": (named("function", "torch.hub:load"), F, "torch.hub:load", OPEN),
    "name-functools-reduce": (named("function", "functools:reduce"), F, "functools:reduce", OPEN),
    "name-library-function": (
        named("function", "transformers.modeling_utils:load_state_dict"),
        F,
        "load_state_dict",
        OPEN,
    ),
    "name-through-a-module": (
        named("function", "torch.nn.functional:torch.hub.load"),
        F,
        "torch.hub.load",
        OPEN,
    ),
    "name-os-through-torch": (named("function", "torch:os.system"), F, "torch:os.system", OPEN),
    "name-dunder": (named("class", "app:App.__init__.__globals__"), F, "'__'", OPEN),
    "name-subclasses": (named("class", "builtins:object.__subclasses__"), F, "'__'", OPEN),
    "name-private-module": (named("module", "torch._dynamo.eval_frame:A"), F, "_dynamo", OPEN),
    "name-script-module": (named("module", "torch.jit._script:ScriptModule"), F, "ScriptM", OPEN),
    "name-trainer": (named("object", "transformers.trainer:Trainer"), F, "Trainer", OPEN),
    "name-pipeline": (named("object", "transformers.pipelines.base:Pipeline"), F, "Pipeline", OPEN),
    "name-remote-code": (
        named("module", "transformers_modules.evil:M"),
        F,
        "transformers_modules",
        OPEN,
    ),
    "name-other-class": (named("object", "http.server:HTTPServer"), F, "HTTPServer", OPEN),
    "name-with-spaces": (named("object", "app :App"), F, "module:qualname", OPEN),
    "name-without-module": (named("object", ":App"), F, "module:qualname", OPEN),
    "name-with-newline": (named("object", "app:App\n"), F, "module:qualname", OPEN),
    "name-with-path": (named("object", "../app:App"), F, "module:qualname", OPEN),
    "name-of-no-kind": (named("reduce", "os:system"), D, "no known kind", OPEN),
    "class-of-other-kind": (
        in_skeleton(lambda s: s["nodes"][2].update(c=1)),
        D,
        "listed as function",
        OPEN,
    ),
    "class-out-of-range": (
        in_skeleton(lambda s: s["nodes"][2].update(c=9)),
        D,
        "class 9 of 3",
        OPEN,
    ),
    "class-negative": (in_skeleton(lambda s: s["nodes"][2].update(c=-1)), D, "class -1", OPEN),
    # nodes
    "node-reduce": (node({"t": "reduce", "c": 1, "args": ["id"]}), D, "kind 'reduce'", OPEN),
    "node-setstate": (node({"t": "object", "c": 2, "s": {}, "setstate": [0]}), D, "setstate", OPEN),
    "node-init": (node({"t": "object", "c": 2, "s": {}, "init": []}), D, "init", OPEN),
    "node-dunder-state": (
        node({"t": "object", "c": 2, "s": {"__class__": [4]}}),
        D,
        "__class__",
        OPEN,
    ),
    "node-hooks": (
        node({"t": "module", "c": 0, "s": {"_forward_hooks": [5]}}),
        D,
        "sets hooks",
        OPEN,
    ),
    "node-parameters-as-state": (
        node({"t": "module", "c": 0, "s": {"_parameters": [5]}}),
        D,
        "plain attributes",
        OPEN,
    ),
    "node-parameter-no-tensor": (
        node({"t": "module", "c": 0, "s": {}, "p": {"w": [4]}}),
        D,
        "wanted [node] of kind tensor",
        OPEN,
    ),
    "node-method-of-library": (
        node({"t": "method", "o": [2], "v": "register_forward_hook"}),
        D,
        "only forward",
        OPEN,
    ),
    "node-method-dunder": (node({"t": "method", "o": [7], "v": "__init__"}), D, "__init__", OPEN),
    "node-partial-of-data": (
        node({"t": "partial", "f": [5], "a": [], "k": {}}),
        D,
        "wanted [node] of kind function",
        OPEN,
    ),
    "node-forward-reference": (
        node({"t": "list", "v": [[9]]}, {"t": "plain", "v": []}),
        D,
        "before",
        OPEN,
    ),
    "node-itself": (node({"t": "tuple", "v": [[8]]}), D, "not made before", OPEN),
    "node-early-tuple": (
        in_skeleton(lambda s: (s["nodes"].append({"t": "tuple", "v": []}), s["early"].append(8))),
        D,
        "stands in early",
        OPEN,
    ),
    "node-early-out-of-range": (
        in_skeleton(lambda s: s["early"].append(99)),
        D,
        "early names",
        OPEN,
    ),
    "node-root-out-of-range": (in_skeleton(lambda s: s.update(root=[99])), D, "node 99", OPEN),
    "node-negative": (in_skeleton(lambda s: s.update(root=[-1])), D, "node -1", OPEN),
    "node-inline-object": (
        in_skeleton(lambda s: s["nodes"][7]["s"].update(x={"a": 1})),
        D,
        "object",
        OPEN,
    ),
    "node-plain-nested": (node({"t": "plain", "v": [[0]]}), D, "more than scalars", OPEN),
    "node-no-object": (in_skeleton(lambda s: s["nodes"].append([1])), D, "wanted an object", OPEN),
    "node-kind-unhashable": (
        in_skeleton(lambda s: s["nodes"].append({"t": []})),
        D,
        "of kind []",
        OPEN,
    ),
    "node-bad-base64": (node({"t": "bytes", "v": "*"}), D, "wanted base64", OPEN),
    "node-range-step-0": (node({"t": "range", "v": [0, 1, 0]}), D, "not 0", OPEN),
    "node-device": (node({"t": "device", "v": "cuda:0; rm"}), D, "device", OPEN),
    "node-dtype": (node({"t": "dtype", "v": "load"}), D, "dtype 'load'", OPEN),
    "node-default-factory": (node({"t": "default", "f": "eval", "s": {}}), D, "'eval'", OPEN),
    "node-time": (node({"t": "time", "c": "sys", "v": "x"}), D, "'sys'", OPEN),
    "node-default-unhashable": (
        node({"t": "default", "f": ["list"], "s": {}}),
        D,
        "the default ['list']",
        OPEN,
    ),
    "node-tuples-doubled": (
        node({"t": "tuple", "v": [1]}, *[{"t": "tuple", "v": [[i], [i]]} for i in range(8, 38)]),
        D,
        "is a tuple of",
        OPEN,
    ),
    "node-tuples-deep": (
        node({"t": "tuple", "v": [1]}, *[{"t": "tuple", "v": [[i]]} for i in range(8, 1100)]),
        D,
        "1001 deep",
        OPEN,
    ),
    "node-partial-of-partial": (
        node(
            {"t": "partial", "f": [4], "a": [1], "k": {}},
            {"t": "partial", "f": [8], "a": [1], "k": {}},
        ),
        D,
        "wanted [node] of kind function or method or class",
        OPEN,
    ),
    "skeleton-utf16": (
        lambda f: put("skeleton.json", f["skeleton.json"].decode().encode("utf-16"))(f),
        D,
        "not acceptable JSON",
        OPEN,
    ),
    "skeleton-duplicate-keys": (
        put("skeleton.json", b'{"names":[],"early":[],"root":1,"root":2,"nodes":[]}'),
        D,
        "'root' occurs twice",
        OPEN,
    ),
    "skeleton-deep": (
        put(
            "skeleton.json",
            b'{"names":[],"early":[],"nodes":[],"root":' + b"[" * 70 + b"]" * 70 + b"}",
        ),
        D,
        "nested deeper",
        OPEN,
    ),
    "skeleton-nan": (
        put("skeleton.json", b'{"names":[],"early":[],"root":NaN,"nodes":[]}'),
        D,
        "NaN",
        OPEN,
    ),
    "skeleton-not-utf8": (put("skeleton.json", b'{"names":"\xff\xfe"}'), D, "JSON", OPEN),
    # views
    "tensor-out-of-range": (node({"t": "tensor", "i": 3}), D, "tensor 3", OPEN),
    "tensor-negative": (node({"t": "tensor", "i": -1}), D, "tensor -1", OPEN),
    "tensor-boolean": (node({"t": "tensor", "i": True}), D, "tensor True", OPEN),
    "tensor-of-nothing": (node({"t": "tensor", "i": None}), D, "no shape", OPEN),
    "view-past-the-end": (
        node({"t": "tensor", "i": 1, "v": ["float32", [17], [1], 0]}),
        D,
        "ends at byte 68 of 64",
        OPEN,
    ),
    "view-offset-past-the-end": (
        node({"t": "tensor", "i": 1, "v": ["float32", [0], [1], 17]}),
        D,
        "ends at byte 68 of 64",
        OPEN,
    ),
    "view-wider-dtype": (
        node({"t": "tensor", "i": 1, "v": ["float64", [16], [1], 0]}),
        D,
        "ends at byte 128 of 64",
        OPEN,
    ),
    "view-stride-overflow": (
        node({"t": "tensor", "i": 1, "v": ["float32", [2, 2], [1 << 62, 1], 0]}),
        D,
        "integer",
        OPEN,
    ),
    "view-large-stride": (
        node({"t": "tensor", "i": 1, "v": ["float32", [2, 2], [1 << 50, 1], 0]}),
        D,
        "ends at byte",
        OPEN,
    ),
    "view-negative-stride": (
        node({"t": "tensor", "i": 1, "v": ["float32", [4], [-1], 4]}),
        D,
        "integer",
        OPEN,
    ),
    "view-negative-offset": (
        node({"t": "tensor", "i": 1, "v": ["float32", [4], [1], -4]}),
        D,
        "integer",
        OPEN,
    ),
    "view-unknown-dtype": (
        node({"t": "tensor", "i": 1, "v": ["qint8", [4], [1], 0]}),
        D,
        "'qint8'",
        OPEN,
    ),
    "view-strides-missing": (
        node({"t": "tensor", "i": 1, "v": ["float32", [2, 2], [1], 0]}),
        D,
        "strides",
        OPEN,
    ),
    "view-many-dimensions": (
        node({"t": "tensor", "i": 1, "v": ["float32", [1] * 1000, [1] * 1000, 0]}),
        D,
        "at most 64",
        OPEN,
    ),
    "array-object-dtype": (
        node({"t": "array", "i": 1, "dtype": "|O8", "shape": [8]}),
        D,
        "'|O8'",
        OPEN,
    ),
    "array-structured-dtype": (
        node({"t": "array", "i": 1, "dtype": "i4,O", "shape": [1]}),
        D,
        "'i4,O'",
        OPEN,
    ),
    "array-big-endian": (
        node({"t": "array", "i": 1, "dtype": ">f4", "shape": [16]}),
        D,
        "'>f4'",
        OPEN,
    ),
    "array-past-the-end": (
        node({"t": "array", "i": 1, "dtype": "<f8", "shape": [9]}),
        D,
        "ends at byte 72 of 64",
        OPEN,
    ),
    "array-negative-strides": (
        node({"t": "array", "i": 1, "dtype": "<f4", "shape": [4], "strides": [-4], "o": 12}),
        D,
        "integer",
        OPEN,
    ),
}


def main() -> None:
    shutil.rmtree(CORPUS, ignore_errors=True)
    sound = good()
    write(CORPUS / "good", sound)
    expected = {}
    for name, (change, error, reason, stage) in CASES.items():
        files = dict(sound)
        change(files)
        changed = {path: data for path, data in files.items() if sound.get(path) != data}
        without = sorted(sound.keys() - files.keys())
        assert changed or without, name
        write(CORPUS / name, changed)
        expected[name] = {"error": error, "reason": reason, "stage": stage, "without": without}
    (CORPUS / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def write(folder: Path, files: Files) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


if __name__ == "__main__":
    main()
