"""Starts a base zygote: ``CONTROL_FD ALIVE_FD [libtorch] [once]``.

Loading libtorch takes as long as importing all the rest, so a thread does it meanwhile. It has ended
before the zygote looks whether it may be forked.
"""

import sys
import threading


def _load_libtorch() -> None:
    """Only dlopen: ``snapshot.libtorch`` finds it loaded, and says what is wrong if it is not."""
    import ctypes
    import os

    from zerowake.snapshot import installed_torch

    if (path := installed_torch.library()) is None:
        return
    # A call through ctypes gives up the interpreter lock; ctypes.CDLL would hold it.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    dlopen(os.fsencode(path), os.RTLD_NOW | os.RTLD_GLOBAL)


def main(arguments: list[str]) -> None:
    loader = threading.Thread(target=_load_libtorch) if "libtorch" in arguments else None
    if loader is not None:
        loader.start()
    from zerowake.runtime import zygote

    if loader is not None:
        loader.join()
    zygote.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
