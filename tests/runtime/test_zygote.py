"""``zerowake.runtime.zygote``: what it holds for all, before the gateway says what to import."""

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
