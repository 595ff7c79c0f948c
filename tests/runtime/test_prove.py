"""What proving says of who imports torch."""

from traceback import FrameSummary

import pytest

from zerowake.runtime.prove import _said


@pytest.mark.parametrize(
    "frames, said",
    [
        ([("app.py", "predict")], "app.py:7 imports torch in predict"),
        (
            [("app.py", "<module>")],
            "app.py:7 imports torch at the top; move it into load, and classes that need it (an "
            "nn.Module) into a file of their own, which load imports",
        ),
        (
            [("app.py", "<module>"), ("net.py", "<module>")],
            "app.py:7 imports net.py at the top, which imports torch; import it in load",
        ),
        (
            [("app.py", "predict"), ("net.py", "<module>")],
            "app.py:7 imports net.py in predict, which imports torch; import it in load",
        ),
    ],
)
def test_who_imports_torch_and_what_to_do(frames: list[tuple[str, str]], said: str) -> None:
    assert _said([FrameSummary(f"/x/code/{file}", 7, name) for file, name in frames]) == said
