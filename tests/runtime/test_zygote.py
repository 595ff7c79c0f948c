"""``zerowake.runtime.zygote``: what it holds for all, before the gateway says what to import."""

import subprocess
from pathlib import Path

from support import run_python


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
    found = run_python(
        """
        import os, socket, sys
        sys.path.insert(0, sys.argv[1])
        from zerowake.runtime import process, zygote
        from zerowake.runtime.wire import Connection, encode
        from zerowake.snapshot.errors import UnusableForm
        ours, theirs = map(Connection, socket.socketpair())
        ours.socket.sendall(encode({"kind": "import", "modules": ["zerowake.snapshot.libtorch"]}))
        alive, _ours = os.pipe()
        if not os.fork():
            ours.socket.close()
            zygote.main([str(theirs.socket.fileno()), str(alive)])
            os._exit(0)
        theirs.socket.close()
        print(ours.receive().header["kind"])
        from zerowake.snapshot import libtorch
        try:
            libtorch.libtorch()
        except UnusableForm as error:
            print("cannot be used without torch" in str(error))
        process.set_threads(1)
        """,
        tmp_path,
    )
    assert found.stdout.split() == ["up", "True"]
