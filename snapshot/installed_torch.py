"""The installed torch, as far as its files tell: where its library lies, and which version it is.

Does not import torch, which takes a second, and imports next to nothing else: a base zygote asks
before all else.
"""

import importlib.util
import os


def library() -> str | None:
    """The path of ``libtorch_cpu.so``; None without torch."""
    folder = _folder()
    return None if folder is None else os.path.join(folder, "lib", "libtorch_cpu.so")


def version() -> str | None:
    """As ``torch.__version__``; None without torch, or where it does not say."""
    if (folder := _folder()) is None:
        return None
    with open(os.path.join(folder, "version.py")) as file:
        text = file.read()
    return text.partition("\n__version__ = '")[2].partition("'")[0] or None


def _folder() -> str | None:
    spec = importlib.util.find_spec("torch")  # looks, does not import
    return None if spec is None or spec.origin is None else os.path.dirname(spec.origin)
