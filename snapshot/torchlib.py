"""Where the installed torch keeps its library, found without importing torch.

Imports next to nothing: a base zygote asks before all else.
"""

import importlib.util
import os


def find_library() -> str | None:
    """The path of ``libtorch_cpu.so``; None without torch."""
    spec = importlib.util.find_spec("torch")  # looks, does not import
    if spec is None or spec.origin is None:
        return None
    return os.path.join(os.path.dirname(spec.origin), "lib", "libtorch_cpu.so")
