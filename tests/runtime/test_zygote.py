"""``zerowake.runtime.zygote``: what it holds for all, before the gateway says what to import."""

import subprocess
import textwrap
from pathlib import Path

from support import run_python
from workshop import freeze_source

# A base with libtorch is forked, and the kind of the first frame that it sends is printed.
BASE = """
import os, socket
from zerowake.runtime import zygote
from zerowake.runtime.wire import Connection, encode
ours, theirs = map(Connection, socket.socketpair())
ours.socket.sendall(encode({"kind": "import", "modules": ["zerowake.snapshot.libtorch"]}))
alive, _ours = os.pipe()
if not os.fork():
    ours.socket.close()
    zygote.main([str(theirs.socket.fileno()), str(alive)])
    os._exit(0)
theirs.socket.close()
print(ours.receive().header["kind"])
"""


def run_base(
    before: str, after: str = "", *arguments: object
) -> "subprocess.CompletedProcess[str]":
    """Scripts around the start of a base, in one process."""
    return run_python(textwrap.dedent(before) + BASE + textwrap.dedent(after), *arguments)


def test_it_imports_neither_torch_nor_libtorch() -> None:
    """Whoever finds ``libtorch.py`` imported takes libtorch for loaded, and loads it: 60 MB each."""
    found = run_python(
        """
        import sys
        from zerowake.runtime import zygote
        print(sorted({"torch", "zerowake.snapshot.libtorch"} & sys.modules.keys()))
        """
    )
    assert found.stdout.strip() == "[]"


def test_a_libtorch_that_cannot_be_used_is_left_to_those_that_need_it(tmp_path: Path) -> None:
    """One without the functions that we call: the base lives on, for functions without tensors."""
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("\n__version__ = '2.0.0'\n")
    command = ["gcc", "-shared", "-x", "c", "-", "-o", tmp_path / "torch/lib/libtorch_cpu.so"]
    subprocess.run(command, input=b"", check=True)
    found = run_base(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        """,
        """
        from zerowake.runtime import process
        from zerowake.snapshot import libtorch
        from zerowake.snapshot.errors import UnusableForm
        try:
            libtorch.libtorch()
        except UnusableForm as error:
            print("cannot be used without torch" in str(error))
        process.set_threads(1)
        """,
        tmp_path,
    )
    assert found.stdout.split() == ["up", "True"]


def test_a_base_with_libtorch_runs_it_once_before_it_is_up() -> None:
    found = run_base(
        """
        from zerowake.snapshot.libtorch import LibTorch
        def multiply(library, run_once=LibTorch.run_once):
            run_once(library)
            print("has run", flush=True)
        LibTorch.run_once = multiply
        """
    )
    assert found.stdout.splitlines() == ["has run", "up"]


def test_a_function_that_went_to_sleep_finds_its_tokenizer_made(tmp_path: Path) -> None:
    """And one whose process was killed does not: that may have been the tokenizer's doing."""
    made = freeze_source(
        tmp_path,
        """
        from tokenizers import Tokenizer, models
        self.pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        """,
    )
    found = run_python(
        """
        import os, signal, socket, sys
        from unittest import mock
        import tokenizers
        from zerowake.runtime.config import InstanceSpec
        from zerowake.runtime import zygote
        from zerowake.runtime.wire import Connection
        from zerowake.snapshot import tokenizer
        from zerowake.snapshot.manifest import digest_of
        path = sys.argv[1]
        digest = digest_of(open(path + "/manifest.json", "rb").read())
        ours, theirs = map(Connection, socket.socketpair())
        base = zygote.Zygote(theirs, -1)
        for leave in (lambda *_: os.kill(os.getpid(), signal.SIGKILL), lambda *_: os._exit(0)):
            theirs.descriptors.append(os.dup(1))
            spec = InstanceSpec("f", digest, path).to_json()
            with mock.patch.object(base, "_become_child", leave):
                base._fork({"ticket": 1, "role": "instance", "spec": spec})
            (pidfd,) = base._children
            base._reap(pidfd)
            print(len(tokenizer._kept))
        """,
        made.path,
    )
    assert found.stdout.split() == ["0", "1"]


def test_what_no_process_has_restored_is_not_made_in_the_base(tmp_path: Path) -> None:
    """A stranger's snapshot whose code is refused: nobody knows what its tokenizer does to a process."""
    made = freeze_source(
        tmp_path,
        """
        from tokenizers import Tokenizer, models
        self.pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        """,
    )
    found = run_python(
        """
        import os, socket, sys
        import tokenizers
        from zerowake.runtime.config import InstanceSpec
        from zerowake.runtime import zygote
        from zerowake.runtime.wire import Connection
        from zerowake.snapshot import tokenizer
        from zerowake.snapshot.manifest import digest_of
        path, os.environ["ZEROWAKE_STATE"] = sys.argv[1:]
        digest = digest_of(open(path + "/manifest.json", "rb").read())
        _ours, theirs = map(Connection, socket.socketpair())
        alive, _alive = os.pipe()
        base = zygote.Zygote(theirs, alive)
        for role in ("instance", "zygote"):
            ours, child = socket.socketpair()
            theirs.descriptors.append(child.detach())
            spec = InstanceSpec("f", digest, path).to_json()
            base._fork({"ticket": 1, "role": role, "spec": spec})
            (pidfd,) = base._children
            base._reap(pidfd)
            print(Connection(ours).receive().header["problem"]["code"], len(tokenizer._kept))
        """,
        made.path,
        tmp_path / "state",
    )
    assert found.stdout.split() == ["code_not_trusted", "0"] * 2
